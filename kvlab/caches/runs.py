"""Attention over runs of rows. On CPUs whose softmax MLX leaves scalar, a prefill's is put together from blocks.

There, queries go in blocks whose scores stay in the processor's cache, and runs of rows (prefixes that others share,
then the sequence's own) are read where they are, each giving a part that log-sum-exp merging adds to the others': the
recurrence of online softmax (Milakov and Gimelshein 2018), over query blocks as in FlashAttention (Dao et al. 2022).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from kvlab.backend import has_spare_core
from kvlab.caches.exponential import is_composed, pick

Run = tuple[mx.array, mx.array]
BLOCK = 1 << 18
"""Scores computed at a time: 1 MB, what a core's own cache holds."""
APART = 1 << 17
"""Scores from which on a second core, if one is spare, computes half of the heads."""
FEWEST = 16
"""Queries a block, or small products would be slow."""


def attend_runs(
    queries: mx.array, runs: Sequence[Run], scale: float, mask: mx.array | str | None, sinks: mx.array | None
) -> mx.array:
    """Attention ``[1, n_heads, n, v_head_dim]`` of the newest ``n`` queries over rows in ``runs``.

    Args:
        queries: ``[1, n_heads, n, head_dim]``.
        runs: keys and values ``[1, n_kv_heads, length, head_dim]``, one run behind the other; the last holds the
            queries' own rows.
        mask: what of the last run is visible: ``"causal"``, bool ``[1, 1, n, length]``, or None for all of it.
            Earlier runs are visible throughout.
        sinks: ``[n_heads]``, joining the denominator.
    """
    _, heads, count, _ = queries.shape
    if count == 1 or not is_composed() or queries.dtype != mx.float32:
        keys, values = (
            run[0] if len(run) == 1 else mx.concatenate(list(run), axis=2) for run in zip(*runs, strict=True)
        )
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
    kv_heads = runs[-1][0].shape[1]
    scores = heads * count * sum(keys.shape[2] for keys, _ in runs)
    if kv_heads == 1 or scores < APART or not has_spare_core():
        return _blocks(queries, runs, scale, mask, sinks)
    half = kv_heads // 2
    parts = []
    for heads_of, stream in ((slice(half, None), aside()), (slice(half), mx.default_stream(mx.default_device()))):
        mine = slice(*(bound and bound * heads // kv_heads for bound in (heads_of.start, heads_of.stop)))
        with mx.stream(stream):
            cut = [(keys[:, heads_of], values[:, heads_of]) for keys, values in runs]
            parts.append(_blocks(queries[:, mine], cut, scale, mask, None if sinks is None else sinks[mine]))
    return mx.concatenate(parts[::-1], axis=1)


@functools.cache
def aside() -> Any:
    """A second stream of the CPU, one a thread."""
    return mx.new_thread_local_stream(mx.cpu)


def _blocks(
    queries: mx.array, runs: Sequence[Run], scale: float, mask: mx.array | str | None, sinks: mx.array | None
) -> mx.array:
    _, heads, count, dim = queries.shape
    kv_heads = runs[-1][0].shape[1]
    longest = sum(keys.shape[2] for keys, _ in runs)
    grouped = (queries * scale).reshape(1, kv_heads, heads // kv_heads, count, dim)
    step = max(FEWEST, BLOCK // (heads * longest))
    blocks = [
        _block(grouped[:, :, :, at : at + step], at, count, runs, mask, sinks).astype(queries.dtype)
        for at in range(0, count, step)
    ]
    return blocks[0] if len(blocks) == 1 else mx.concatenate(blocks, axis=2)


def _block(
    queries: mx.array, at: int, count: int, runs: Sequence[Run], mask: mx.array | str | None, sinks: mx.array | None
) -> mx.array:
    """``[1, n_heads, b, v_head_dim]`` for queries ``[1, n_kv_heads, group, b, head_dim]``, those from ``at`` on."""
    _, kv_heads, group, size, _ = queries.shape
    parts = [_part(queries, *run, None) for run in runs[:-1]]
    keys, values = runs[-1]
    if mask == "causal":
        end = keys.shape[2] - count + at + size
        parts.append(_part(queries, keys[:, :, :end], values[:, :, :end], mx.tri(size) > 0))
    else:
        seen = mask[0, 0, at : at + size] if isinstance(mask, mx.array) else None
        parts.append(_part(queries, keys, values, seen))
    out, top, total = parts[0]
    for more, peak, amount in parts[1:]:
        highest = mx.maximum(top, peak)
        old, new = mx.exp(top - highest), mx.exp(peak - highest)
        out, top, total = out * old + more * new, highest, total * old + amount * new
    if sinks is not None:
        total = total + mx.exp(mx.repeat(sinks.reshape(kv_heads, group, 1), size, axis=1).reshape(top.shape) - top)
    return (out / total).reshape(1, kv_heads * group, size, -1)


def _part(
    queries: mx.array, keys: mx.array, values: mx.array, mask: mx.array | None
) -> tuple[mx.array, mx.array, mx.array]:
    """Unnormalized sums of values, largest scores and sums of exponentials, ``[1, n_kv_heads, group * b, ...]``.

    ``mask``, bool ``[b, columns]``, is about the last columns.
    """
    _, kv_heads, group, size, dim = queries.shape
    scores = (queries.reshape(1, kv_heads, group * size, dim) @ keys.swapaxes(-1, -2)).astype(mx.float32)
    if mask is not None:
        length = scores.shape[-1]
        scores = scores.reshape(1, kv_heads, group, size, length)
        edge = length - mask.shape[1]
        scores[..., edge:] = mx.where(mask, scores[..., edge:], mx.finfo(mx.float32).min)
        scores = scores.reshape(1, kv_heads, group * size, length)
    top = scores.max(axis=-1, keepdims=True)
    weights = pick()(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return (weights.astype(values.dtype) @ values).astype(mx.float32), top, total
