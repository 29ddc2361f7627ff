"""The small models that tests compute with are what they say, and mlx-lm reads them as it reads any other."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx.utils import tree_flatten

from kvlab.models import LoadedModel
from tests.helpers import FLOAT32, FLOAT32_HEAD, FOUR_BITS, ROPE, SIXTEEN_BITS, Weights, random_model_folder

WEIGHTS = [FLOAT32, *SIXTEEN_BITS, *FOUR_BITS, FLOAT32_HEAD]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_mlx_lm_reads_them_and_keeps_kv_in_their_dtype(architecture: str, weights: Weights, tmp_path: Path) -> None:
    model, _ = mlx_lm.load(str(random_model_folder(architecture, tmp_path, weights=weights)))
    caches = mlx_lm.models.cache.make_prompt_cache(model)
    logits = model(mx.array([[5, 6, 7]]), cache=caches)
    assert caches[0].keys.dtype == caches[1].values.dtype == getattr(mx, weights.dtype)
    assert logits.dtype == (mx.float32 if weights.float32_head else getattr(mx, weights.dtype))
    quantised = [module for module in model.modules() if isinstance(module, nn.QuantizedLinear)]
    assert {(module.bits, module.group_size) for module in quantised} == (
        {(weights.bits, weights.group)} if weights.bits else set()
    )


def test_a_loaded_one_computes_in_the_dtype_of_its_weights(mac_model: LoadedModel, mac_weights: Weights) -> None:
    assert mac_model.dtype == mac_weights.dtype
    caches = mlx_lm.models.cache.make_prompt_cache(mac_model.model)
    mac_model.model(mx.array([[5, 6, 7]]), cache=caches)
    assert caches[1].keys.dtype == getattr(mx, mac_weights.dtype)


def test_the_float32_head_outweighs_all_other_floats(tmp_path: Path) -> None:
    model, _ = mlx_lm.load(str(random_model_folder("llama", tmp_path, weights=FLOAT32_HEAD)))
    arrays: Any = tree_flatten(model.parameters())
    sizes = {dtype: sum(a.size for _, a in arrays if a.dtype == dtype) for dtype in (mx.float32, mx.bfloat16)}
    assert sizes[mx.float32] > sizes[mx.bfloat16] > 0


@pytest.mark.parametrize("kind", ROPE)
def test_scaled_rope_is_read(kind: str, tmp_path: Path) -> None:
    model, _ = mlx_lm.load(str(random_model_folder("llama", tmp_path, rope_scaling=ROPE[kind])))
    assert mx.isfinite(model(mx.arange(5, 105)[None])).all().item()
    assert type(model.layers[0].self_attn.rope) is not nn.RoPE
