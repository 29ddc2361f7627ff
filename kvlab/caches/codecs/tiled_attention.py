"""Attention over encoded rows in tiles: a few rows are decoded at a time, and the results are merged.

The recurrence is that of online softmax (Milakov and Gimelshein 2018), which the backends have as
``partial_attention`` and ``merge``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.attention_state import AttentionState
from kvlab.backends.base import Segment
from kvlab.caches.codecs.base import Arrays, EncodedRows
from kvlab.caches.codecs.raw import RawCodec

TILE_ROWS = 512
"""Rows that are decoded at a time: small beside a long cache, and few tiles mean few kernels."""

TILE_QUERIES = 512
"""Queries whose scores are computed at a time: for 32 heads, their scores of a tile take 32 MiB."""


def attend_in_tiles(
    backend: Backend,
    decode: Callable[[Arrays], Segment],
    queries: mx.array,
    segments: Sequence[Arrays],
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    """Compute attention as :meth:`kvlab.caches.codecs.Codec.attend` does, and decode ``TILE_ROWS`` rows at a time.

    Args:
        decode: gives keys and values of rows.

    Returns:
        ``[batch, n_heads, n, v_head_dim]``, in the dtype of the queries.
    """
    count = queries.shape[2]
    outs = []
    for first in range(0, count, TILE_QUERIES):
        last = min(first + TILE_QUERIES, count)
        some = queries[:, :, first:last]
        own = length_of(segments[-1])
        if isinstance(mask, mx.array):
            outs.append(_attend(backend, decode, some, segments, scale, mask[:, :, first:last], sinks))
        elif mask is None:
            outs.append(_attend(backend, decode, some, segments, scale, None, sinks))
        else:
            visible = own - count + last  # later rows are those of later queries
            cut = {name: array[:, :, :visible] for name, array in segments[-1].items()}
            outs.append(_attend(backend, decode, some, [*segments[:-1], cut], scale, mask, sinks))
    return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=2)


def scores_in_tiles(keys_of: Callable[[Arrays], mx.array], queries: mx.array, rows: Arrays) -> mx.array:
    """Multiply queries ``[batch, n_kv_heads, n, head_dim]`` with the keys of ``rows``, a tile at a time; float32."""
    parts: list[mx.array] = []
    pace = TilePace()
    for start in range(0, length_of(rows), TILE_ROWS):
        if parts:
            pace.next_tile(parts[-1])
        parts.append(queries @ keys_of(tile_of(rows, start)).swapaxes(-1, -2))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


def mix_in_tiles(values_of: Callable[[Arrays], mx.array], weights: mx.array, rows: Arrays) -> mx.array:
    """Multiply weights ``[batch, n_kv_heads, n, length]`` with the values of ``rows``, a tile at a time; float32."""
    total: mx.array | None = None
    pace = TilePace()
    for start in range(0, length_of(rows), TILE_ROWS):
        if total is not None:
            pace.next_tile(total)
        part = weights[..., start : start + TILE_ROWS] @ values_of(tile_of(rows, start))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("attention needs at least one row")
    return total


def length_of(rows: Arrays) -> int:
    """Return the number of rows of arrays ``[batch, n_kv_heads, length, width]``."""
    return next(iter(rows.values())).shape[2]


def tile_of(rows: Arrays, start: int) -> dict[str, mx.array]:
    """Return the rows of the tile from ``start`` on."""
    return {name: array[:, :, start : start + TILE_ROWS] for name, array in rows.items()}


class TilePace:
    """Lets at most two tiles be in memory: MLX allocates for all work that it is given, long before it runs."""

    def __init__(self) -> None:
        self._submitted: Sequence[mx.array] = ()

    def next_tile(self, *results: mx.array) -> None:
        """Submit what gives the ``results`` of a tile, and wait for the tile before it."""
        mx.async_eval(*results)
        mx.eval(*self._submitted)
        self._submitted = results


def _attend(
    backend: Backend,
    decode: Callable[[Arrays], Segment],
    queries: mx.array,
    segments: Sequence[Arrays],
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    batch, heads, count, dim = queries.shape
    kv_heads = next(iter(segments[-1].values())).shape[1]
    grouped = backend.scaled_queries(queries, scale).reshape(batch, kv_heads, heads // kv_heads * count, dim)
    state: AttentionState | None = None
    pace = TilePace()
    for place, rows in enumerate(segments):
        length, is_own = length_of(rows), place == len(segments) - 1
        for start in range(0, length, TILE_ROWS):
            end = min(start + TILE_ROWS, length)
            if state is not None:
                pace.next_tile(state.out, state.max_score, state.sum_exp)
            keys, values = (side.astype(mx.float32) for side in decode(tile_of(rows, start)))
            seen = _seen(mask, start, end, length, count, heads // kv_heads) if is_own else None
            part = backend.partial_attention(grouped, EncodedRows(RawCodec(), {"k": keys, "v": values}), seen)
            state = part if state is None else backend.merge(state, part)
    if state is None:
        raise ValueError("attention needs at least one row")
    flat = AttentionState(*(a.reshape(batch, heads * count, -1) for a in (state.out, state.max_score, state.sum_exp)))
    out = backend.finish(flat, queries.dtype, None if sinks is None else mx.repeat(sinks, count))
    return out.reshape(batch, heads, count, -1)


def _seen(mask: mx.array | str | None, start: int, end: int, length: int, count: int, group: int) -> mx.array | None:
    """Return which rows of a tile are visible, bool ``[batch or 1, n_kv_heads or 1, group * n, rows]``; None for all.

    ``count`` queries of each of the ``group`` query heads of a KV head see some of the ``length`` rows of a segment.
    """
    if mask is None or (isinstance(mask, str) and end <= length - count + 1):
        return None
    if isinstance(mask, str):
        mask = (mx.arange(start, end) <= mx.arange(length - count, length)[:, None])[None, None]
    else:
        mask = mask[..., start:end]
    batch, heads, _, rows = mask.shape
    if heads > 1:
        return mask.reshape(batch, heads // group, group * count, rows)
    return mx.broadcast_to(mask[:, :, None], (batch, 1, group, count, rows)).reshape(batch, 1, group * count, rows)
