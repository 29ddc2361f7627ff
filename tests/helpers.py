"""Small models with random weights, written as folders that mlx_lm.load reads."""

from __future__ import annotations

import importlib
import json
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


def random_model(architecture: str, folder: Path, *, seed: int = 0, **config: Any) -> LoadedModel:
    """A loaded model of ``architecture`` (a module of mlx_lm.models, such as qwen3 or llama) with random weights."""
    return load(random_model_folder(architecture, folder, seed=seed, **config))


def random_model_folder(
    architecture: str, folder: Path, *, seed: int = 0, dtype: str = "float32", **config: Any
) -> Path:
    """Write config, weights and tokenizer to ``folder``. ``config`` overrides SIZES."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder)
    settings = {"model_type": architecture, "vocab_size": vocabulary, "eos_token_id": 2, **SIZES, **config}
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(settings))
    rng = np.random.default_rng(seed)
    kind = getattr(mx, dtype)

    def draw(path: str, array: mx.array) -> mx.array:
        # Larger than usual, so that attention is peaked and the greedy tokens depend on all of the context.
        if array.ndim == 1:
            return mx.ones(array.shape, dtype=kind)
        return mx.array(rng.normal(0, 2.5 / array.shape[-1] ** 0.5, array.shape).astype(np.float32)).astype(kind)

    model.update(tree_map_with_path(draw, model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    return folder


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
