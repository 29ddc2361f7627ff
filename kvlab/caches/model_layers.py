"""Find the parts of a model's attention that some scorers read: RoPE and the output projection of each layer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.policies.scorers.model_layer import ModelLayer

LAYERS_ATTRIBUTE = "_kvlab_model_layers"
"""Attribute of a model that holds what was found in its layers."""
OUTPUT_NAMES = ("o_proj", "out_proj", "wo", "dense", "c_proj")
"""Names of the output projection in mlx-lm's attention modules."""
PROBE_POSITIONS = (1, 1000)
PROBE_CHANNELS = 64
"""Channels of a probe where the RoPE does not say how many it rotates."""
MAX_ROPE_ERROR = 1e-3
"""Largest part of a vector by which rotating it there and back may change it, in float32."""


def model_layers(model: nn.Module) -> tuple[ModelLayer, ...]:
    """Return what scorers may read of each of ``model.layers``; what is not found in a known form is None."""
    known: tuple[ModelLayer, ...] | None = getattr(model, LAYERS_ATTRIBUTE, None)
    if known is None:
        known = tuple(map(_model_layer, model.layers))
        object.__setattr__(model, LAYERS_ATTRIBUTE, known)
    return known


def _model_layer(layer: nn.Module) -> ModelLayer:
    found = [module for _, module in layer.named_modules() if "rope" in module]
    if len(found) != 1:
        return ModelLayer()
    attention = found[0]
    rope = attention["rope"]
    projection = next((attention[name] for name in OUTPUT_NAMES if name in attention), None)
    projection = getattr(projection, "linear", projection)  # of an adapter, the layer that it adapts
    is_known = isinstance(projection, nn.Linear | nn.QuantizedLinear)
    weight = functools.partial(_input_rows, projection) if is_known else None
    return ModelLayer(rope if rotates_back(rope) else None, weight)


def rotates_back(rope: Callable[..., mx.array]) -> bool:
    """Return whether ``rope`` rotates each row of a batch to a position of its own, and back again.

    A RoPE whose scale depends on the length of the sequence does not take an array of offsets.
    """
    width = getattr(rope, "dims", None) or getattr(rope, "dim", None) or PROBE_CHANNELS
    x = mx.random.normal((len(PROBE_POSITIONS), 1, 1, width), key=mx.random.key(0))
    at = mx.array(PROBE_POSITIONS, mx.int32)
    try:
        factor = rope(mx.ones((1, 1, 1, width)), offset=0)
        there = rope(x, offset=at)
        back = rope(there, offset=-at) / (factor * factor)
        last = rope(x[-1:], offset=PROBE_POSITIONS[-1])
        error = mx.maximum(mx.abs(back - x).max(), mx.abs(last - there[-1:]).max())
        return bool((error <= MAX_ROPE_ERROR * mx.abs(x).max()).item())
    except (TypeError, ValueError, RuntimeError):
        return False


def _input_rows(projection: Any) -> mx.array:
    """Return a linear layer's weight, ``[inputs, outputs]``, dequantized."""
    weight = projection.weight
    if isinstance(projection, nn.QuantizedLinear):
        weight = mx.dequantize(
            weight, projection.scales, projection.get("biases"), projection.group_size, projection.bits, projection.mode
        )
    return weight.T
