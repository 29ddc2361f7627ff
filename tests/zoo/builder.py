"""Builds a small model with random weights from any module of ``mlx_lm.models``."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from kvlab.models import LoadedModel
from tests.lab import END
from tests.zoo.sizes import FAMILIES, SIZES, TEXT_CONFIG

MAX_PARAMETERS = 8_000_000
"""Largest small model: a field that SIZES does not know has its usual size, and the model is not small."""


def config_of(name: str) -> dict[str, Any]:
    """Return the small config of a module: fields of its arguments that SIZES knows, then what its family needs."""
    text = TEXT_CONFIG.get(name)
    family = FAMILIES.get(name, {})
    if text is None:
        return {"model_type": name, "eos_token_id": 2, **_known(f"{name}.ModelArgs"), **family}
    inner, _, arguments = text.partition(".")
    inside = {"model_type": inner, **_known(f"{inner}.{arguments or 'ModelArgs'}"), **FAMILIES.get(inner, {}), **family}
    return {"model_type": name, "eos_token_id": 2, **_known(f"{name}.ModelArgs"), "text_config": inside}


def _known(arguments: str) -> dict[str, Any]:
    module, _, name = arguments.partition(".")
    fields = dataclasses.fields(getattr(importlib.import_module(f"mlx_lm.models.{module}"), name))
    return {field.name: SIZES[field.name] for field in fields if field.name in SIZES}


def small_model(name: str, seed: int = 0, dtype: mx.Dtype = mx.float32) -> LoadedModel:
    """Return a small model of ``mlx_lm.models.<name>`` with random weights, as :func:`kvlab.load` returns one.

    It is not written to a folder and loaded from there, because tokenizer and config classes of other libraries do
    not know all modules, or refuse small sizes. Its tokenizer knows no text.
    """
    model, rng = build(name), np.random.default_rng(seed)
    model.update(tree_map_with_path(lambda path, array: _draw(rng, path, array), model.parameters()))
    model.set_dtype(dtype)
    tokenizer = SimpleNamespace(eos_token_ids={END})
    kind = str(dtype).rpartition(".")[2]
    return LoadedModel(model, tokenizer, name, Path(name), f"small-{name}-{seed}-{kind}", kind, len(model.layers))


def build(name: str) -> nn.Module:
    """Return a small model with the weights of its class. Raises ValueError for one that is not small."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(copy.deepcopy(config_of(name))))
    size = sum(array.size for _, array in tree_flatten(model.parameters()))
    if size > MAX_PARAMETERS:
        raise ValueError(f"{name} has {size} parameters: SIZES lacks one of its fields")
    return model


def _draw(rng: np.random.Generator, path: str, array: mx.array) -> mx.array:
    kind, shape = path.rsplit(".", 1)[-1], array.shape
    if array.dtype not in (mx.float32, mx.bfloat16, mx.float16):
        return array
    if kind == "A_log":  # slow decay: state reaches back over the whole prompt
        values = np.log(rng.uniform(0.02, 0.3, shape))
    elif kind in ("dt_bias", "dt_proj.bias"):
        values = rng.uniform(-2.5, -1.0, shape)
    elif kind == "D":
        values = np.ones(shape)
    elif kind in ("bias", "sinks", "e_score_correction_bias"):
        values = rng.normal(0, 0.3, shape)
    elif len(shape) <= 1:
        values = rng.uniform(0.4, 1.6, shape)
    elif "conv" in path:
        values = rng.normal(0, 1 / shape[1] ** 0.5, shape)
    else:
        values = rng.normal(0, 1.5 / shape[-1] ** 0.5, shape)
    return mx.array(np.asarray(values, np.float32))
