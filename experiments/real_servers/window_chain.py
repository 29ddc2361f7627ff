"""As ``word_chain.py``, in the shape of Gemma 3: layers with a sliding window of 512 tokens, and one that sees all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import environments
import gguf
import numpy as np
from safetensors.numpy import save_file
from word_chain import (
    CONTEXT,
    GGUF_FILE,
    TOKENIZER,
    TOKENIZER_ENTRIES,
    TOKENIZER_FILE,
    WIDTH,
    chained_ends,
    copied_metadata,
    written_whole,
)

from kvlab.models.fetching import models_path

NAME = "window-chain"
LAYERS = 6
"""Of Gemma 3, every sixth layer sees all tokens."""

WINDOW_TOKENS = 512
NORM_EPS, ROPE_BASE, WINDOW_ROPE_BASE = 1e-6, 1_000_000.0, 10_000.0
SEED = 0

# Parts of a layer with their names in a GGUF file; the projections that add to the residual stream are zero.
PROJECTIONS = {
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
SILENT = ("self_attn.o_proj", "mlp.down_proj")
NORMS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}

Weights = dict[str, "np.ndarray[Any, Any]"]


def window_chain(folder: Path | None = None) -> Path:
    """Return the folder that holds the model for MLX and as a GGUF file; it is made where it is not there yet."""
    target = environments.root(folder) / "models" / NAME
    if not (target / GGUF_FILE).is_file():
        target.mkdir(parents=True, exist_ok=True)
        source = models_path() / TOKENIZER
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, target / name)
        embeddings, head = chained_ends(json.loads((source / "tokenizer.json").read_text(encoding="utf-8")))
        layers = _layers()
        ends = {"model.embed_tokens.weight": embeddings, "lm_head.weight": head}
        # Gemma's norms multiply by one more than their weights.
        norms = {f"model.layers.{layer}.{name}.weight": WIDTH for layer in range(LAYERS) for name in NORMS}
        norms["model.norm.weight"] = WIDTH
        zeros = {name: np.zeros(width, np.float32) for name, width in norms.items()}
        save_file({**ends, **layers, **zeros}, target / "model.safetensors", {"format": "mlx"})
        (target / "config.json").write_text(json.dumps(_config(len(head)), indent=1))
        ones = {name: np.ones(width, np.float32) for name, width in norms.items()}
        _write_gguf(source / TOKENIZER_FILE, target / GGUF_FILE, {**ends, **layers, **ones})
    return target


def _config(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": WIDTH,
        "query_pre_attn_scalar": WIDTH,
        "rms_norm_eps": NORM_EPS,
        "vocab_size": vocabulary,
        "max_position_embeddings": CONTEXT,
        "rope_theta": ROPE_BASE,
        "rope_local_base_freq": WINDOW_ROPE_BASE,
        "sliding_window": WINDOW_TOKENS,
        "sliding_window_pattern": LAYERS,
        "eos_token_id": [2],
        "torch_dtype": "float32",
    }


def _layers() -> Weights:
    """Return float32 projections by their names in MLX, random or zero."""
    random = np.random.default_rng(SEED)
    return {
        f"model.layers.{layer}.{name}.weight": (
            random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5 * (name not in SILENT)
        )
        for layer in range(LAYERS)
        for name in PROJECTIONS
    }


def _write_gguf(source: Path, target: Path, weights: Weights) -> None:
    with written_whole(target, "gemma3") as writer:
        copied_metadata(source, writer, TOKENIZER_ENTRIES)
        writer.add_name(NAME)
        writer.add_block_count(LAYERS)
        writer.add_context_length(CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_feed_forward_length(WIDTH)
        writer.add_head_count(1)
        writer.add_head_count_kv(1)
        writer.add_key_length(WIDTH)
        writer.add_value_length(WIDTH)
        writer.add_rope_freq_base(ROPE_BASE)
        writer.add_sliding_window(WINDOW_TOKENS)
        writer.add_layer_norm_rms_eps(NORM_EPS)
        writer.add_vocab_size(len(weights["lm_head.weight"]))
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for name, array in weights.items():
            writer.add_tensor(_gguf_name(name), array)


def _gguf_name(name: str) -> str:
    outside = {
        "model.embed_tokens.weight": "token_embd",
        "lm_head.weight": "output",
        "model.norm.weight": "output_norm",
    }
    if name in outside:
        return f"{outside[name]}.weight"
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{(PROJECTIONS | NORMS)[part]}.weight"
