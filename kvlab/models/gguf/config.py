"""From a GGUF file's metadata to the config that mlx-lm reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kvlab.errors import ModelError
from kvlab.models.gguf.file import GgufFile

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""Families of models that can be read, by their name in GGUF; the file of mlx_lm.models that computes each."""

GEMMA3_SLIDING_PATTERN = 6
GEMMA3_LOCAL_ROPE_BASE = 10_000.0
GEMMA3_27B_LAYERS = 62
"""Of its family only this one scales attention by the width of a head in the residual stream."""
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What Llama 3.1 to 3.3 share; the file holds the factors that follow from them, not these numbers."""
ROPE_FACTOR_TOLERANCE = 1e-3


def check_family(file: GgufFile) -> str:
    """Return the file of mlx_lm.models that computes this model. Raises ModelError that names what cannot be used."""
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelError(f"{file.path} holds no model but {kind!r}; give the GGUF file of a model")
    if file.architecture not in FAMILIES:
        name = f"of the architecture {file.architecture!r}" if file.architecture else "of no named architecture"
        raise ModelError(
            f"{file.path} is a model {name}; GGUF files can be used of {', '.join(FAMILIES)}. Give other models as a "
            "folder or a hub id in MLX format"
        )
    if file.value("expert_count"):
        raise ModelError(
            f"{file.path} is a mixture of {file.value('expert_count')} experts ({file.architecture}); give it as a "
            "folder or a hub id in MLX format"
        )
    return FAMILIES[file.architecture]


def model_config(file: GgufFile) -> dict[str, Any]:
    """Return what belongs into ``config.json``. Raises ModelError for what mlx-lm's model of the family cannot do."""
    model_type = check_family(file)
    heads, width = int(file.number("attention.head_count")), int(file.number("embedding_length"))
    if not heads or "token_embd.weight" not in file.tensors:
        raise ModelError(f"{file.path} holds no weights of a model; fetch it again")
    head_dim = int(file.number("attention.key_length", width // heads))
    _refuse_other_layers(file, int(file.number("block_count")))
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": int(file.number("block_count")),
        "intermediate_size": int(file.number("feed_forward_length")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.number("attention.head_count_kv", heads)),
        "head_dim": head_dim,
        "rms_norm_eps": file.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": int(file.number("context_length")),
        "rope_theta": file.number("rope.freq_base", 1e6 if file.architecture == "gemma3" else 1e4),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    _refuse_other_widths(file, head_dim, width // heads)
    scaling = _rope_scaling(file, head_dim, config["rope_theta"])
    if scaling:
        config["rope_scaling"] = scaling
    if file.architecture == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if file.architecture == "gemma3":
        config |= _gemma3(file, config)
    return config


def _gemma3(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if file.value(key):
            raise ModelError(f"{file.path} caps its logits ({key}), which Gemma 3 does not; give it in MLX format")
    large = config["num_hidden_layers"] == GEMMA3_27B_LAYERS
    scalar = config["hidden_size"] // config["num_attention_heads"] if large else config["head_dim"]
    return {
        "query_pre_attn_scalar": scalar,
        "sliding_window": int(file.number("attention.sliding_window")),
        "sliding_window_pattern": _sliding_pattern(file),
        "rope_local_base_freq": file.number("rope.freq_base_swa", GEMMA3_LOCAL_ROPE_BASE),
    }


def _sliding_pattern(file: GgufFile) -> int:
    """Every so many layers, one sees the whole context."""
    found = file.value("attention.sliding_window_pattern", GEMMA3_SLIDING_PATTERN)
    if isinstance(found, list):  # of each layer: whether it slides
        whole = [at + 1 for at, slides in enumerate(found) if not slides]
        period = whole[0] if whole else len(found) + 1
        if whole != list(range(period, len(found) + 1, period)):
            raise ModelError(f"{file.path} slides in layers without a period; give it in MLX format")
        found = period
    return int(found)


def _refuse_other_layers(file: GgufFile, layers: int) -> None:
    """Raise ModelError where the header counts other layers than there are; so many would be built."""
    there = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(there) != layers:
        raise ModelError(
            f"{file.path} does not hold the weights that its header tells of: {layers} layers, and there are "
            f"{len(there)}; fetch it again"
        )


def _refuse_other_widths(file: GgufFile, head_dim: int, usual: int) -> None:
    """Raise ModelError where heads are of widths that mlx-lm's model of the family does not know."""
    for key in ("attention.value_length", "rope.dimension_count"):
        if int(file.number(key, head_dim)) != head_dim:
            raise ModelError(f"{file.path}: {key} is not the width of a head, {head_dim}; give it in MLX format")
    if file.architecture == "qwen2" and head_dim != usual:
        raise ModelError(f"{file.path}: heads of {head_dim}, where Qwen2 has {usual}; give it in MLX format")


def _rope_scaling(file: GgufFile, head_dim: int, base: float) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        return _llama3_rope(file, head_dim, base)
    kind, factor = file.value("rope.scaling.type", "none"), file.value("rope.scaling.factor", 1.0)
    if kind == "none" or not factor or factor == 1:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        length = int(file.number("rope.scaling.original_context_length"))
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length}
    raise ModelError(
        f"{file.path} scales its positions by {kind!r}; kvlab knows linear and yarn. Give it in MLX format"
    )


def _llama3_rope(file: GgufFile, head_dim: int, base: float) -> dict[str, Any] | None:
    """Find the numbers from which Llama 3's factors follow. Raises ModelError for other factors."""
    factors = file.read("rope_freqs.weight").astype(np.float64).reshape(-1)
    if len(factors) != head_dim // 2:
        raise ModelError(f"{file.path} scales {len(factors)} frequencies of {head_dim // 2}; fetch it again")
    factor = float(factors.max())
    if factor == 1 and factors.min() == 1:
        return None
    lengths = 2 * math.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, trained = LLAMA3_ROPE.values()
    between = np.clip((trained / lengths - low) / (high - low), 0, 1)
    expected = 1 / ((1 - between) / factor + between)
    if not np.allclose(expected, factors, rtol=ROPE_FACTOR_TOLERANCE):
        raise ModelError(f"{file.path} scales its positions by other factors than Llama 3's; give it in MLX format")
    return {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
