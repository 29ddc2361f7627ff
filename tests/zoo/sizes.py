"""Small values for the fields of mlx-lm's ``ModelArgs``, by the field's name, and what single families need besides."""

from __future__ import annotations

from typing import Any

VOCABULARY = 261
"""Tokens of the tests' own tokenizer."""
WINDOW = 24
CHUNK = 40
LAYERS = 4
WIDTH = 128

_YARN_FREE: dict[str, Any] = {"rope_type": "default", "type": "default", "rope_theta": 10000.0}

SIZES: dict[str, Any] = {
    # width and depth
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "hidden_dim", "model_dim", "block_dim"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_transformer_layers"), LAYERS),
    **dict.fromkeys(
        (
            "intermediate_size", "intermediate_size_mlp", "dense_intermediate_size", "ffn_hidden_size", "n_inner",
            "ff_intermediate_size", "expert_ffn_hidden_size", "moe_intermediate_size", "shared_intermediate_size",
            "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "moe_hidden_size",
            "share_expert_dim", "block_ff_dim",
        ),
        128,
    ),
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), VOCABULARY),
    # heads
    **dict.fromkeys(
        ("num_attention_heads", "n_heads", "n_head", "num_heads", "num_query_heads", "swa_num_attention_heads",
         "num_swa_attention_heads"),
        4,
    ),
    **dict.fromkeys(
        ("num_key_value_heads", "n_kv_heads", "num_kv_heads", "num_global_key_value_heads", "num_attention_groups",
         "swa_num_key_value_heads", "num_swa_key_value_heads"),
        2,
    ),
    **dict.fromkeys(("head_dim", "kv_channels", "hidden_size_per_head", "swa_head_dim"), 32),
    "global_head_dim": 32,
    **dict.fromkeys(("v_head_dim", "swa_v_head_dim"), 32),
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "qk_head_dim": 48,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "o_lora_rank": 16,
    "o_groups": 2,
    "index_head_dim": 32,
    "index_n_heads": 2,
    "index_topk": 16,
    # positions
    **dict.fromkeys(("max_position_embeddings", "n_ctx", "n_positions", "block_size", "model_max_length"), 4096),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq", "rope_local_theta", "swa_rope_theta",
                     "rope_embedding_base", "compress_rope_theta"), 10000.0),
    "rope_parameters": _YARN_FREE,
    "rope_scaling": None,
    "rotary_dim": 16,
    "rotary_pct": 0.5,
    "partial_rotary_factor": 0.5,
    # windows
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size", "window_size",
                     "loop_window_size"), WINDOW),
    "sliding_window_pattern": 2,
    "attention_chunk_size": CHUNK,
    # norms
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon",
                     "norm_epsilon", "mixer_rms_eps", "post_norm_eps"), 1e-6),
    "group_norm_size": 1,
    # biases and switches
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "conv_bias", "tie_word_embeddings", "no_bias",
                     "use_qkv_bias", "mamba_proj_bias"), False),
    **dict.fromkeys(("use_conv_bias", "mamba_conv_bias", "norm_topk_prob", "use_qk_norm", "qk_norm"), True),
    "hidden_act": "silu",
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k",
                     "top_k_experts"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_groups", "mamba_n_groups"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_freq", "decoder_sparse_step",
                     "moe_layer_interval", "interleave_moe_layer_step"), 1),
    "mlp_only_layers": [],
    "routed_scaling_factor": 1.0,
    "zero_expert_num": 1,
    "zero_expert_type": "identity",
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "use_expert_bias": True,
    # scales
    **dict.fromkeys(("logits_scaling", "embedding_multiplier", "residual_multiplier", "scale_emb", "scale_depth"), 1.0),
    "attention_multiplier": 0.18,
    "query_pre_attn_scalar": 32,
    "dim_model_base": WIDTH,
    "mup_width_multiplier": 1.0,
    # recurrent and convolutional layers
    **dict.fromkeys(("mamba_num_heads", "mamba_n_heads"), 4),
    **dict.fromkeys(("mamba_head_dim", "mamba_d_head", "mamba_d_state", "ssm_state_size", "state_size"), 16),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim", "conv1d_width",
                     "short_conv_kernel_size", "conv_L_cache"), 4),
    "conv_window": 2,
    "mamba_expand": 2,
    "time_step_rank": 4,
    "time_step_limit": [0.001, 100.0],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_allow_neg_eigval": True,
    "full_attention_interval": 2,
    "layer_group_size": 2,
    "linear_attn_config": {
        "full_attn_layers": [2, 4], "kda_layers": [1, 3], "num_heads": 4, "head_dim": 32, "short_conv_kernel_size": 4,
    },
    "attn_layer_offset": 1,
    "attn_layer_period": 2,
    "expert_layer_offset": 1,
    "expert_layer_period": 2,
    **dict.fromkeys(("a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim", "decay_low_rank_dim"), 16),
}  # fmt: skip

_HALF = LAYERS // 2
_SLIDING_THEN_FULL = ["sliding_attention", "full_attention"] * _HALF

TEXT_CONFIG: dict[str, str] = {
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "gemma3n": "gemma3n.TextConfig", "kimi_k25": "deepseek_v3",
    "kimi_k3": "kimi_k3.TextArgs", "kimi_vl": "kimi_vl.TextArgs", "lfm2-vl": "lfm2", "llama4": "llama4.TextArgs",
    "minimax_m3_vl": "minimax_m3_vl.TextArgs", "mistral3": "ministral3", "muse_spark": "muse_spark.TextArgs",
    "pixtral": "llama", "qwen2_vl": "qwen2", "qwen3_5": "qwen3_5.TextModelArgs",
    "qwen3_5_moe": "qwen3_5.TextModelArgs", "qwen3_vl": "qwen3", "qwen3_vl_moe": "qwen3_moe",
    "prism_hadamard_qwen35": "qwen3_5.TextModelArgs",
}  # fmt: skip
"""Modules around another model of text, and the arguments of that one: a module, or ``module.class``."""

_YARN = {
    "rope_type": "yarn", "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale_all_dim": 1.0,
}  # fmt: skip
_LLAMA4_SCALING = {"rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 32,
                   "rope_type": "default"}  # fmt: skip
_LFM2 = {
    "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False, "conv_L_cache": 3,
    "layer_types": ["conv", "full_attention"] * _HALF,
}  # fmt: skip
_ROPE_BY_LAYER = {kind: {"rope_theta": 10000.0, "rope_type": "default"} for kind in set(_SLIDING_THEN_FULL)}
_LONGCAT = {"attention_method": "MLA", "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "num_layers": 2}
_LLAMA4 = {"num_experts_per_tok": 1, "no_rope_layers": [1, 0] * _HALF, "floor_scale": 16}

FAMILIES: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {"layer_types": _SLIDING_THEN_FULL},
    "apertus": {"post_norm": False},
    "baichuan_m1": {"sliding_window_layers": [0, 2]},
    "cohere2": {"sliding_window_pattern": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": _YARN},
    "deepseek_v41": {
        "compress_ratios": [1, 4, 4, 1], "kv_source_layer_ids": [0, 1, 1, 3], "index_source_layer_ids": [0, 1, 1, 3],
    },
    "exaone": {"num_key_value_heads": 4},
    "exaone4": {"sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": _SLIDING_THEN_FULL, "is_moe_layer": [False, True, True, True]},
    "gear": {"layer_types": [*_SLIDING_THEN_FULL[:3], "conv_mixer"]},
    "gemma3n": {
        "num_kv_shared_layers": 1, "num_hidden_layers": 5, "final_logit_softcapping": 30.0,
        "layer_types": [*_SLIDING_THEN_FULL, "full_attention"], "activation_sparsity_pattern": [0.5] * 2 + [0.0] * 3,
        "hidden_size_per_layer_input": 32, "altup_num_inputs": 2, "altup_coef_clip": 120.0,
        "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 16,
    },
    "gemma4_text": {
        "num_kv_shared_layers": 1, "num_hidden_layers": 5, "hidden_size_per_layer_input": 32,
        "layer_types": [*_SLIDING_THEN_FULL, "full_attention"], "rope_parameters": None,
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * _HALF, "position_embedding_type": "nope", "mamba_d_head": 64,
    },
    "hunyuan": {
        "use_mixed_mlp_moe": True, "use_cla": True, "cla_share_factor": 2,
        "rope_scaling": {"alpha": 10.0, "factor": 1.0, "type": "dynamic"},
    },
    "kimi_k3": {"hidden_act": "situ", "activation_situ_beta": 1.0, "activation_situ_linear_beta": 1.0},
    "laguna": {"layer_types": _SLIDING_THEN_FULL, "rope_parameters": None},
    "lfm2": _LFM2,
    "lfm2_moe": _LFM2,
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": _LONGCAT,
    "mellum": {"layer_types": _SLIDING_THEN_FULL, "rope_parameters": _ROPE_BY_LAYER},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0] * _HALF, "moe_layer_freq": [0, 1, 1, 1], "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "minicpm3": {
        "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 64, "short_factor": [1.0] * 8,
                         "long_factor": [1.0 + i / 8 for i in range(8)]},
    },
    "minimax_m3_vl": {
        "moe_layer_freq": [0, 1, 1, 1], "index_block_size": 8, "index_topk_blocks": 3, "rope_parameters": None,
        "layer_types": ["full_attention", "sparse_attention"] * _HALF,
    },
    "ministral3": {"rope_parameters": _LLAMA4_SCALING},
    "mistral4": {"rope_parameters": _LLAMA4_SCALING},
    "muse_spark": {
        "layer_rope_theta": [10000.0, 0.0] * _HALF, "layer_types": _SLIDING_THEN_FULL, "final_logit_softcapping": 30.0,
        "output_multiplier": 0.3, "num_shared_experts": 0,
    },
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
        ],
    },
    "nemotron_h": {"hybrid_override_pattern": "M*-E"},
    "openelm": {
        "ffn_dim_divisor": 8, "ffn_multipliers": [1.0] * LAYERS, "num_query_heads": [4] * LAYERS,
        "num_kv_heads": [2] * LAYERS,
    },
    "phi3small": {"dense_attention_every_n_layers": 1, "gegelu_limit": 20.0},
    "plamo": {"n_shared_head": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "logits_soft_cap": 30.0},
    "spark2_5": {"layer_types": _SLIDING_THEN_FULL, "rope_parameters": _ROPE_BY_LAYER, "hidden_act": "gelu"},
}  # fmt: skip
