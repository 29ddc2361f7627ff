"""From a GGUF file's tensors to the parameters of mlx-lm's models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.errors import ModelError
from kvlab.models.gguf.file import GgufFile

WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA3_LAYER = LAYER | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
IN_THE_CONFIG = frozenset({"rope_freqs.weight"})
"""Tensors that no parameter is made of: see kvlab/models/gguf/config.py."""


def parameters(file: GgufFile, config: dict[str, Any], dtype: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    """Yield the parameters one by one, evaluated, in ``dtype``. Raises ModelError for a tensor that none is made of."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name in file.tensors:
        if name in IN_THE_CONFIG:
            continue
        part, made = _name(file, name)
        values = file.read(name)
        if file.architecture == "llama" and part in heads:
            values = _in_halves(values, heads[part])
        if file.architecture == "gemma3" and part.endswith("norm"):
            values = values - 1  # mlx-lm's model adds one
        array = mx.array(values).astype(dtype)
        mx.eval(array)
        yield made, array


def _name(file: GgufFile, name: str) -> tuple[str, str]:
    """The part of a layer that a tensor is, and the parameter's name."""
    parts = GEMMA3_LAYER if file.architecture == "gemma3" else LAYER
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    known = {} if found is None else WHOLE if found[1] is None else parts
    if found is None or found[2] not in known:
        raise ModelError(
            f"{file.path} has the tensor {name}, which plain {file.architecture} models do not have; give it as a "
            "folder or a hub id in MLX format"
        )
    layer = "" if found[1] is None else f"model.layers.{found[1]}."
    return found[2], f"{layer}{known[found[2]]}.{found[3]}"


def _in_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of each head as mlx-lm rotates them: first all even ones, then all odd ones."""
    rows = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(values.shape)
