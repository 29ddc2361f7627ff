"""Writes small random models twice: as a folder of mlx-lm, and as GGUF with the `gguf` package's own writer."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType as Kind
from mlx.utils import tree_flatten

from tests.helpers import CHAT_TEMPLATE, SPECIAL, write_tokenizer

WINDOW = 24
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 50000.0,
}
GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "rope_local_base_freq": 10000.0,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Family:
    """A family of models: its name in GGUF, its module in mlx-lm, and what differs from SIZES."""

    gguf: str
    module: str
    config: Mapping[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family("llama", "llama", {"head_dim": 32, "tie_word_embeddings": True}),
    "llama-head-and-biases": Family(
        "llama", "llama", {"tie_word_embeddings": False, "attention_bias": True, "rope_scaling": LLAMA3_SCALING}
    ),
    "qwen2": Family("qwen2", "qwen2", {"tie_word_embeddings": False}),
    "qwen2-linear": Family(
        "qwen2", "qwen2", {"tie_word_embeddings": True, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    ),
    "qwen3": Family("qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": Family(
        "qwen3",
        "qwen3",
        {
            "head_dim": 32,
            "tie_word_embeddings": False,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        },
    ),
    "gemma3": Family("gemma3", "gemma3_text", GEMMA),
}
KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16, "Q8_0": Kind.Q8_0, "Q4_0": Kind.Q4_0, "Q4_1": Kind.Q4_1}

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GEMMA_NAMES = _NAMES | {
    "pre_feedforward_layernorm": "ffn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_twins(family: Family, kind: str, folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write one random model as a folder of mlx-lm and as a GGUF file; both hold what ``kind`` leaves of its weights.

    Returns the folder and the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": family.module, "vocab_size": write_tokenizer(folder), "eos_token_id": 2}
    config |= {**SIZES, **family.config}
    module = importlib.import_module(f"mlx_lm.models.{family.module}")
    network = module.Model(module.ModelArgs.from_dict(config))
    if config.get("tie_word_embeddings", True) and family.module == "gemma3_text":
        network.sanitize({})  # drops the head
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    file = folder / "model.gguf"
    writer = gguf.GGUFWriter(file, family.gguf)
    for name, array in tree_flatten(network.parameters()):
        wide = rng.normal(0, 2.5 / array.shape[-1] ** 0.5, array.shape) if array.ndim > 1 else None
        values = (rng.normal(0 if name.endswith("bias") else 1, 0.2, array.shape) if wide is None else wide).astype(
            "f4"
        )
        if family.gguf == "gemma3" and wide is None:
            values -= 1
        weights[name] = _add_tensor(writer, family, config, name, values, KINDS[kind])
    if family.config.get("rope_scaling", {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {name: mx.array(values) for name, values in weights.items()},
        {"format": "mlx"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    _add_metadata(writer, family, config)
    add_byte_level(writer, *_helpers_vocabulary(folder), pre="gpt-2")
    close(writer)
    return folder, file


def _add_tensor(
    writer: gguf.GGUFWriter, family: Family, config: Mapping[str, Any], name: str, values: np.ndarray, kind: Kind
) -> np.ndarray:
    """Write a parameter as llama.cpp's converter would; return what is left of it in this format."""
    path, _, last = name.rpartition(".")
    _, _, after = path.partition("model.layers.")
    names = _GEMMA_NAMES if family.gguf == "gemma3" else _NAMES
    if after:
        layer, _, path = after.partition(".")
    there = (f"blk.{layer}." if after else "") + f"{names[path]}.{last}"
    if values.ndim == 1:  # norms and biases stay as they are
        stored = values + np.float32(1) if family.gguf == "gemma3" else values
        writer.add_tensor(there, _interleaved(family, config, there, stored))
        return stored - np.float32(1) if family.gguf == "gemma3" else values
    packed = gguf.quants.quantize(_interleaved(family, config, there, values), kind)
    plain = kind in (Kind.F32, Kind.F16)
    writer.add_tensor(there, packed, raw_dtype=None if plain else kind)
    left = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
    return left.astype(np.float32)


def _interleaved(family: Family, config: Mapping[str, Any], name: str, values: np.ndarray) -> np.ndarray:
    """Llama's queries and keys with pairs of rows side by side, as llama.cpp rotates them."""
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(name.split(".")[-2])
    if family.gguf != "llama" or heads is None:
        return values
    count = config[heads]
    width = values.shape[0] // count
    made = np.empty_like(values)
    for head in range(count):
        for row in range(width // 2):
            made[head * width + 2 * row] = values[head * width + row]
            made[head * width + 2 * row + 1] = values[head * width + width // 2 + row]
    return made


def _llama3_factors(config: Mapping[str, Any]) -> np.ndarray:
    """What each frequency is divided by, from the definition, one by one."""
    scaling = config["rope_scaling"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    factors = []
    for at in range(width // 2):
        length = 2 * np.pi * config["rope_theta"] ** (2 * at / width)
        turns = scaling["original_max_position_embeddings"] / length
        if turns < scaling["low_freq_factor"]:
            factors.append(scaling["factor"])
        elif turns > scaling["high_freq_factor"]:
            factors.append(1.0)
        else:
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(factors, np.float32)


def _add_metadata(writer: gguf.GGUFWriter, family: Family, config: Mapping[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if family.gguf == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
        writer.add_uint32("gemma3.attention.sliding_window_pattern", config["sliding_window_pattern"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def _helpers_vocabulary(folder: Path) -> tuple[list[str], list[int]]:
    """Tokens and their kinds of the tokenizer that tests.helpers writes."""
    found = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(found, key=found.__getitem__)
    return tokens, [3 if token in SPECIAL[:3] else 4 if token in SPECIAL else 1 for token in tokens]


def add_byte_level(
    writer: gguf.GGUFWriter, tokens: list[str], kinds: list[int], merges: list[str] | None = None, *, pre: str
) -> None:
    """Add a byte-level vocabulary whose third token ends an answer, with the tests' chat template."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if merges:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


def close(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
