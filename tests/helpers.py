"""Small models with random weights, written as folders that mlx_lm.load reads."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from kvlab.models import LoadedModel, load

CHAT_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Weights:
    """How weights are stored, and so computed with.

    Attributes:
        dtype: float32, bfloat16 or float16: the activations' too, and the KV's.
        bits: quantised to so many bits, as mlx-lm's converter does; None: not quantised.
        group: weights that share a scale.
        float32_head: the head stays float32 and is not quantised, so that most floats of the model are float32
            though all of its KV is ``dtype``.
    """

    dtype: str = "float32"
    bits: int | None = None
    group: int = 64
    float32_head: bool = False

    def __str__(self) -> str:
        quantised = f"-{self.bits}bit-{self.group}" if self.bits else ""
        return self.dtype + quantised + "-float32-head" * self.float32_head


FLOAT32 = Weights()
SIXTEEN_BITS = [Weights("bfloat16"), Weights("float16")]
FOUR_BITS = [Weights("bfloat16", bits=4, group=group) for group in (32, 64)]
FLOAT32_HEAD = Weights("bfloat16", bits=4, float32_head=True)
"""What a Mac's users have: 16 bits, 4-bit weights, and 4-bit weights under a large head of float32."""

ROPE: dict[str, dict[str, Any]] = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 32,
        "long_factor": [1.0 + i / 8 for i in range(32)],
    },
}
"""``rope_scaling`` of long contexts, for SIZES; prompts of more than 64 tokens are past what a model was trained on."""


def random_model(
    architecture: str, folder: Path, *, seed: int = 0, weights: Weights = FLOAT32, **config: Any
) -> LoadedModel:
    """A loaded model of ``architecture`` (a module of mlx_lm.models, such as qwen3 or llama) with random weights.

    It computes in the dtype of its weights, on CPUs too.
    """
    random_model_folder(architecture, folder, seed=seed, weights=weights, **config)
    loaded = load(folder, dtype=weights.dtype)
    if weights.float32_head:  # as it is stored, where loading cast all weights to one dtype
        loaded.model.lm_head.weight = mx.load(str(folder / "model.safetensors"))["lm_head.weight"]
    return loaded


def random_model_folder(
    architecture: str, folder: Path, *, seed: int = 0, weights: Weights = FLOAT32, dtype: str = "", **config: Any
) -> Path:
    """Write config, weights and tokenizer to ``folder``, as mlx-lm does. ``config`` overrides SIZES.

    ``dtype`` is short for ``weights=Weights(dtype)``.
    """
    weights = Weights(dtype) if dtype else weights
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder)
    settings = {"model_type": architecture, "vocab_size": vocabulary, "eos_token_id": 2, **SIZES, **config}
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(settings))
    rng = np.random.default_rng(seed)

    def draw(path: str, array: mx.array) -> mx.array:
        kind = mx.float32 if weights.float32_head and _is_head(path) else getattr(mx, weights.dtype)
        # Larger than usual, so that attention is peaked and the greedy tokens depend on all of the context.
        if array.ndim == 1:
            return mx.ones(array.shape, dtype=kind)
        return mx.array(rng.normal(0, 2.5 / array.shape[-1] ** 0.5, array.shape).astype(np.float32)).astype(kind)

    model.update(tree_map_with_path(draw, model.parameters()))
    if weights.bits:
        settings |= _quantize(model, weights)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    return folder


def _quantize(model: nn.Module, weights: Weights) -> dict[str, Any]:
    """Quantise a model's weights, and what mlx-lm writes into its config for that."""

    def is_quantised(path: str, module: nn.Module) -> bool:
        return hasattr(module, "to_quantized") and not (weights.float32_head and _is_head(path))

    nn.quantize(model, weights.group, weights.bits, class_predicate=is_quantised)
    said = {"group_size": weights.group, "bits": weights.bits, "mode": "affine"}
    return {"quantization": said, "quantization_config": said}


def _is_head(path: str) -> bool:
    return path.startswith("lm_head")


def write_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer with the usual special tokens and a chat template; the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL[:3])
    tokenizer.add_tokens(SPECIAL[3:])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    return len(vocabulary)
