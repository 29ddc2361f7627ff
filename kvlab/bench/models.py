"""Models with random weights, for figures that do not depend on what a model has learnt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models import qwen3

from kvlab.models import LoadedModel

VOCABULARY = 1024
END = 0


def qwen3_config(*, layers: int = 6, width: int = 384, vocabulary: int = VOCABULARY) -> dict[str, Any]:
    """The config of a small Qwen3: by default about 10M parameters, 6 KB of KV a token."""
    return {
        "model_type": "qwen3",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": width * 8 // 3,
        "num_attention_heads": width // 64,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }


def random_qwen3(*, layers: int = 6, width: int = 384, seed: int = 0, vocabulary: int = VOCABULARY) -> LoadedModel:
    """A Qwen3 that was never trained, of :func:`qwen3_config`, in float32.

    Its tokenizer knows nothing but the end token: give it token ids below ``vocabulary``.
    """
    config = qwen3_config(layers=layers, width=width, vocabulary=vocabulary)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    rng = np.random.default_rng(seed)

    def draw(array: mx.array) -> mx.array:
        if array.ndim == 1:
            return mx.ones(array.shape)
        return mx.array(rng.standard_normal(array.shape, dtype=np.float32) / array.shape[-1] ** 0.5)

    model.update(tree_map(draw, model.parameters()))
    mx.eval(model.parameters())
    name = f"qwen3-random-{layers}x{width}"
    tokenizer = SimpleNamespace(eos_token_ids=[END], vocab_size=vocabulary)
    return LoadedModel(model, tokenizer, name, Path(), "float32", layers)
