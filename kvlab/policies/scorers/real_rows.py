"""Order of rows in heads that are filled up: some heads keep fewer rows than others, and have filling in front."""

from __future__ import annotations

import mlx.core as mx


def real_first(rows: mx.array, positions: mx.array) -> mx.array:
    """Return ``rows`` ``[1, n_kv_heads, length, ...]`` with the filling of each head behind its rows, as zeros."""
    is_real = positions >= 0
    length = is_real.shape[-1]
    count = is_real.sum(axis=-1, keepdims=True)
    place = mx.arange(length)
    index = mx.minimum(place + length - count, length - 1)
    stays = place < count
    if rows.ndim > positions.ndim:
        index, stays = index[..., None], stays[..., None]
    return mx.where(stays, mx.take_along_axis(rows, index, axis=2), mx.zeros((), rows.dtype))


def filling_first(scores: mx.array, positions: mx.array) -> mx.array:
    """Return ``scores`` of rows as :func:`real_first` orders them, in the order of ``positions`` again."""
    filling = (positions < 0).sum(axis=-1, keepdims=True)
    return mx.take_along_axis(scores, mx.maximum(mx.arange(scores.shape[-1]) - filling, 0), axis=-1)
