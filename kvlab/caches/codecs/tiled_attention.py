"""Attention over encoded rows in tiles: a few rows are decoded at a time, and the results are merged.

The recurrence is that of online softmax (Milakov and Gimelshein 2018), which the backends have as
``partial_attention`` and ``merge``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class TiledRows(Protocol):
    """Encoded rows of which some can be decoded."""

    @property
    def kv_heads(self) -> int:
        """Number of KV heads."""
        ...

    @property
    def length(self) -> int:
        """Number of rows."""
        ...

    def decode(self, start: int, end: int) -> Segment:
        """Return keys and values of the rows from ``start`` to ``end``; ``start`` is a multiple of ``TILE_ROWS``."""
        ...


@dataclass(frozen=True)
class EncodedTiles:
    """Rows whose arrays have a row for each token. ``decoded`` gives keys and values of rows."""

    decoded: Callable[[Arrays], Segment]
    arrays: Arrays

    @property
    def kv_heads(self) -> int:
        return next(iter(self.arrays.values())).shape[1]

    @property
    def length(self) -> int:
        return length_of(self.arrays)

    def decode(self, start: int, end: int) -> Segment:
        return self.decoded({name: array[:, :, start:end] for name, array in self.arrays.items()})


def attend_in_tiles(
    backend: Backend,
    queries: mx.array,
    segments: Sequence[TiledRows],
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    """Compute attention as :meth:`kvlab.caches.codecs.Codec.attend` does, and decode ``TILE_ROWS`` rows at a time.

    Returns:
        ``[batch, n_heads, n, v_head_dim]``, in the dtype of the queries.
    """
    count, own = queries.shape[2], segments[-1].length
    outs = []
    for first in range(0, count, TILE_QUERIES):
        last = min(first + TILE_QUERIES, count)
        some = queries[:, :, first:last]
        if isinstance(mask, mx.array):
            outs.append(_attend(backend, some, segments, own, scale, mask[:, :, first:last], sinks))
        else:  # later rows are those of later queries
            visible = own if mask is None else own - count + last
            outs.append(_attend(backend, some, segments, visible, scale, mask, sinks))
    return outs[0] if len(outs) == 1 else mx.concatenate(outs, axis=2)


def fit_in_a_tile(rows: int) -> bool:
    """Return whether so many rows are decoded at a time anyway."""
    return rows <= TILE_ROWS


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
    queries: mx.array,
    segments: Sequence[TiledRows],
    visible: int,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
) -> mx.array:
    """Compute attention over the first ``visible`` rows of the last segment, and all rows of the others."""
    batch, heads, count, dim = queries.shape
    kv_heads = segments[-1].kv_heads
    grouped = backend.scaled_queries(queries, scale).reshape(batch, kv_heads, heads // kv_heads * count, dim)
    state: AttentionState | None = None
    pace = TilePace()
    for place, rows in enumerate(segments):
        is_own = place == len(segments) - 1
        length = visible if is_own else rows.length
        for start in range(0, length, TILE_ROWS):
            end = min(start + TILE_ROWS, length)
            if state is not None:
                pace.next_tile(state.out, state.max_score, state.sum_exp)
            keys, values = (side.astype(mx.float32) for side in rows.decode(start, end))
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
