"""A Qwen3 of two layers with random weights from a seed, the same in every library: this needs NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np

VOCABULARY = 256
CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the weights in float32, by the names that both mlx-lm and transformers use."""
    hidden, inner, dim = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(CONFIG["num_hidden_layers"]):
        of = f"model.layers.{layer}."
        shapes |= {
            of + "self_attn.q_proj.weight": (heads * dim, hidden),
            of + "self_attn.k_proj.weight": (kv_heads * dim, hidden),
            of + "self_attn.v_proj.weight": (kv_heads * dim, hidden),
            of + "self_attn.o_proj.weight": (hidden, heads * dim),
            of + "self_attn.q_norm.weight": (dim,),
            of + "self_attn.k_norm.weight": (dim,),
            of + "mlp.gate_proj.weight": (inner, hidden),
            of + "mlp.up_proj.weight": (inner, hidden),
            of + "mlp.down_proj.weight": (hidden, inner),
            of + "input_layernorm.weight": (hidden,),
            of + "post_attention_layernorm.weight": (hidden,),
        }
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape)
        # Norms differ from channel to channel: with equal ones, all keys would have the same length.
        return (1 + 0.3 * normal if len(shape) == 1 else normal / shape[-1] ** 0.5).astype(np.float32)

    return {name: draw(shape) for name, shape in shapes.items()}


def prompt(seed: int, length: int) -> list[int]:
    """Return random tokens."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, length).tolist()


def sketch(layer: int, heads: int, width: int, columns: int) -> np.ndarray:
    """Return the sketch of kvlab's compactor for a layer, float32 ``[heads, width, columns]``, not yet scaled."""
    return np.random.default_rng([0, layer]).standard_normal((heads, width, columns)).astype(np.float32)
