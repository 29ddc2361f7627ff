"""Small random-weight models of every cache kind that mlx-lm has, written as folders and loaded as any other model.

Windows and chunks are smaller than the tests' prompts, and weights are drawn so that an answer depends on all of its
context: attention is peaked, recurrent state decays slowly.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from kvlab.models import LoadedModel, load
from tests.helpers import write_tokenizer

WINDOW = 24
CHUNK = 40
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


@dataclass(frozen=True)
class Recipe:
    """How to make a small model.

    Attributes:
        module: the file of mlx_lm.models.
        config: what differs from COMMON.
        stateful: some of its layers rest as checkpoints.
        codecs: policies that change its KV can be used.
        sharp: spread of the weights: small, and attention is an average; large, and it sees one token only.
    """

    module: str
    config: dict[str, Any] = field(default_factory=dict)
    stateful: bool = False
    codecs: bool = True
    sharp: float = 2.5


_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_groups": 1}
_LLAMA4 = {
    "attention_chunk_size": CHUNK,
    "num_hidden_layers": 4,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 128,
    "num_experts_per_tok": 1,
    "num_local_experts": 4,
    "rope_scaling": None,
    "use_qk_norm": True,
    # So that the temperature of the layers without RoPE moves within a short prompt.
    "floor_scale": 16,
}

RECIPES: dict[str, Recipe] = {
    "qwen3": Recipe("qwen3", {"num_hidden_layers": 2}),
    "llama": Recipe("llama", {"num_hidden_layers": 2}),
    "gemma3": Recipe(
        "gemma3_text",
        {
            "num_hidden_layers": 2,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 64,
            "rope_local_base_freq": 10000.0,
        },
        stateful=True,
    ),
    "gpt-oss": Recipe(
        "gpt_oss",
        {
            "num_hidden_layers": 2,
            "sliding_window": WINDOW,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_scaling": {"rope_type": "default"},
        },
        stateful=True,
    ),
    "qwen3-next": Recipe(
        "qwen3_next",
        {
            "num_hidden_layers": 2,
            "full_attention_interval": 2,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_conv_kernel_dim": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "shared_expert_intermediate_size": 64,
            "mlp_only_layers": [],
            "moe_intermediate_size": 64,
            "partial_rotary_factor": 0.25,
        },
        stateful=True,
    ),
    "lfm2": Recipe(
        "lfm2",
        {
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_hidden_layers": 2,
            "norm_eps": 1e-6,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 128,
            "block_multiple_of": 32,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention"],
        },
        stateful=True,
    ),
    "falcon-h1": Recipe(
        "falcon_h1",
        {"num_hidden_layers": 2, "mamba_d_ssm": 64, "mamba_rms_norm": True, "embedding_multiplier": 1.0, **_MAMBA},
        stateful=True,
    ),
    "granite-hybrid": Recipe(
        "granitemoehybrid",
        {
            "num_hidden_layers": 2,
            "head_dim": None,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "layer_types": ["mamba", "attention"],
            "embedding_multiplier": 1.0,
            "attention_multiplier": 0.125,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "position_embedding_type": "nope",
            "mamba_proj_bias": False,
            "mamba_conv_bias": True,
            **_MAMBA,
            "mamba_d_head": 64,
            "mamba_expand": 2,
        },
        stateful=True,
    ),
    "mamba2": Recipe(
        "mamba2",
        {
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 32,
            "state_size": 16,
            "layer_norm_epsilon": 1e-6,
            "conv_kernel": 4,
            "n_groups": 1,
            "use_bias": False,
            "use_conv_bias": True,
            "time_step_limit": [0.001, 100.0],
            "time_step_rank": "auto",
        },
        stateful=True,
        codecs=False,
    ),
    "deepseek-v3": Recipe(
        "deepseek_v3",
        {
            "num_hidden_layers": 3,
            "moe_intermediate_size": 64,
            "num_key_value_heads": 4,
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 32,
            "q_lora_rank": None,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "first_k_dense_replace": 1,
        },
        codecs=False,
    ),
    "llama4": Recipe("llama4", {"text_config": {**COMMON, **_LLAMA4}}, stateful=True, sharp=1.2),
}


def load_recipe(name: str, folder: Path, *, seed: int = 0) -> LoadedModel:
    """The loaded model of a recipe, written to ``folder`` first unless it is there."""
    if not (folder / "config.json").is_file():
        write_recipe(RECIPES[name], folder, seed=seed)
    return load(folder)


def write_recipe(recipe: Recipe, folder: Path, *, seed: int = 0) -> None:
    """Write config, weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder)
    settings = {"model_type": recipe.module, "vocab_size": vocabulary, "eos_token_id": 2, **COMMON, **recipe.config}
    if "text_config" in settings:
        settings["text_config"] = {"model_type": recipe.module, "vocab_size": vocabulary, **settings["text_config"]}
    module = importlib.import_module(f"mlx_lm.models.{recipe.module}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(settings))
    rng = np.random.default_rng(seed)
    model.update(tree_map_with_path(lambda path, array: _draw(rng, recipe, path, array.shape), model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(settings, indent=1))


def _draw(rng: np.random.Generator, recipe: Recipe, path: str, shape: tuple[int, ...]) -> mx.array:
    kind = path.rsplit(".", 1)[-1]
    if kind == "A_log":  # slow decay: state reaches back over the whole prompt
        values = np.log(rng.uniform(0.02, 0.3, shape))
    elif kind == "dt_bias":
        values = rng.uniform(-2.5, -1.0, shape)
    elif kind == "D":
        values = np.ones(shape)
    elif kind in ("bias", "sinks", "e_score_correction_bias"):
        values = rng.normal(0, 0.3, shape)
    elif len(shape) == 1:  # uneven, so that normalised keys differ in norm; Gemma's norms add one to their weight
        values = rng.uniform(0.4, 1.6, shape) - (recipe.module == "gemma3_text")
    elif "conv" in path:  # [channels, kernel, 1]
        values = rng.normal(0, 1 / shape[1] ** 0.5, shape)
    else:
        values = rng.normal(0, recipe.sharp / shape[-1] ** 0.5, shape)
    return mx.array(values.astype(np.float32))
