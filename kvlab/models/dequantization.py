"""Expands quantized weights: MLX multiplies with them an order of magnitude slower than BLAS on CPUs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from kvlab.backends import device
from kvlab.models.kv_dtype import DTYPES

USABLE_SHARE = 0.75
"""Part of the available memory that expanded weights may take: the rest is for KV, activations and other programs."""


@functools.cache
def dense_layers() -> dict[type[nn.Module], Callable[[nn.Module], nn.Module]]:
    """What each quantized layer becomes; the arrays are set afterwards. Layers of other kinds stay as they are."""
    from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    return {
        nn.QuantizedLinear: lambda layer: nn.Linear(1, 1, bias="bias" in layer),
        nn.QuantizedEmbedding: lambda layer: nn.Embedding(1, 1),
        QuantizedSwitchLinear: lambda layer: SwitchLinear(1, 1, 1, bias="bias" in layer),
        QuantizedMultiLinear: lambda layer: MultiLinear(1, 1, 1),
    }


@dataclass(frozen=True)
class DequantizationPlan:
    """What expanding all quantized weights of a model takes, in bytes."""

    needed: int
    available: int

    @property
    def fits(self) -> bool:
        """Whether memory allows it, with a margin."""
        return self.needed <= USABLE_SHARE * self.available

    def __str__(self) -> str:
        usable = _gigabytes(USABLE_SHARE * self.available)
        return f"expanded they need {_gigabytes(self.needed)}, and {usable} of memory may be used"


def plan(model: nn.Module, dtype: str) -> DequantizationPlan | None:
    """What expanding the weights of ``model`` to ``dtype`` takes; None where none are quantized. Evaluates nothing."""
    counts = [layer["weight"].size * 32 // layer.bits for layer in model.modules() if type(layer) in dense_layers()]
    if not counts:
        return None
    return DequantizationPlan(sum(counts) * DTYPES[dtype].size, device.available_bytes())


def dequantize_weights(model: nn.Module, dtype: str | None = None) -> None:
    """Replace every quantized layer of ``model``, in place, by a plain one that computes the same.

    One layer at a time is expanded and its packed weights let go, so that memory never holds both forms of all.

    Args:
        dtype: of the new weights; None: that of their scales, or bfloat16 where scales are no floating-point numbers.
    """
    done: dict[int, nn.Module] = {}
    layers = list(model.modules())  # also keeps ids of replaced layers unique

    def replace(value: Any) -> Any:
        if type(value) not in dense_layers():
            return value
        if id(value) not in done:  # a layer may be used in several places
            done[id(value)] = _expanded(value, dtype)
        return done[id(value)]

    for layer in layers:
        for name, child in list(layer.items()):
            if isinstance(child, nn.Module | list | tuple | dict):
                layer[name] = tree_map(replace, child, is_leaf=nn.Module.is_module)


def _expanded(layer: Any, dtype: str | None) -> nn.Module:
    """A plain layer with the weights of ``layer``, which is left empty."""
    dense = dense_layers()[type(layer)](layer)
    dense.weight = mx.concatenate(list(_expanded_parts(layer, dtype)))
    if "bias" in layer:
        dense.bias = layer.bias
    mx.eval(dense.parameters())
    layer.clear()
    return dense


def _expanded_parts(layer: Any, dtype: str | None) -> Iterator[mx.array]:
    """The weights in one part; in one an expert where experts have scales of their own on top."""
    weight, scales, biases = layer["weight"], layer["scales"], layer.get("biases")
    settings = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    if dtype is not None:
        settings["dtype"] = DTYPES[dtype]
    whole = layer.get("global_scale")
    if whole is None:
        yield mx.dequantize(weight, scales, biases, **settings)
        return
    for at in range(len(weight)):
        yield mx.dequantize(weight[at], scales[at], global_scale=whole[at], **settings)[None]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
