"""References in NumPy for codecs: attention over what a codec decodes, in float64, and the Hadamard matrix."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def as_float(array: mx.array) -> np.ndarray:
    """The numbers of an array in float64."""
    return np.array(array.astype(mx.float32)).astype(np.float64)


def attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
    seen: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    """Attention ``[batch, n_heads, n, width]`` over rows ``[batch, n_kv_heads, length, width]``, all in float64."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)
    scores = queries @ keys.swapaxes(-1, -2) * scale
    if seen is not None:
        scores = np.where(seen, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[None, :, None, None] - top)
    return weights / total @ values


def hadamard(size: int) -> np.ndarray:
    """The orthonormal Hadamard matrix of a power of two, by Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.sqrt(size)
