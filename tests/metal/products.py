"""Linear layers as a GPU computes them: products of 16 bits, and of 4-bit weights, summed in float32 and rounded once.

The orders of the sums differ between one row and many, as those of a GPU's kernels do. BLAS makes this several times
faster than MLX's own products of 16 bits on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

ROWS = 32
"""Rows at a time in a prompt, so that no row depends on how a prompt is cut."""


@contextmanager
def summed_in_float32(model: nn.Module) -> Iterator[None]:
    """Compute the linear layers of ``model``, which are of 16 bits, in this way for a while."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.QuantizedLinear)]
    wide = {id(layer): _float32(layer) for layer in layers if _is_sixteen_bit(layer)}
    mx.eval(wide)
    old = {kind: kind.__call__ for kind in (nn.Linear, nn.QuantizedLinear)}

    def call(layer: Any, x: mx.array) -> mx.array:
        weights = wide.get(id(layer))
        if weights is None:
            return old[type(layer)](layer, x)
        width, count = x.shape[-1], x.size // x.shape[-1]
        rows = x.astype(mx.float32).reshape(count, width)
        if count == 1:  # two halves, as if of other threads
            half = width // 2
            out = rows[:, :half] @ weights[:half] + rows[:, half:] @ weights[half:]
        else:
            out = (mx.pad(rows, [(0, -count % ROWS), (0, 0)]) @ weights)[:count]
        out = out + layer.bias.astype(mx.float32) if "bias" in layer else out
        return out.reshape(*x.shape[:-1], -1).astype(x.dtype)

    try:
        for kind in old:
            kind.__call__ = call  # type: ignore[method-assign]
        yield
    finally:
        for kind, function in old.items():
            kind.__call__ = function  # type: ignore[method-assign]


def _is_sixteen_bit(layer: Any) -> bool:
    return (layer.scales if isinstance(layer, nn.QuantizedLinear) else layer.weight).dtype != mx.float32


def _float32(layer: Any) -> mx.array:
    """Weights ``[in, out]``."""
    if isinstance(layer, nn.QuantizedLinear):
        weight = mx.dequantize(layer.weight, layer.scales, layer.biases, layer.group_size, layer.bits)
    else:
        weight = layer.weight
    return mx.contiguous(weight.astype(mx.float32).T)
