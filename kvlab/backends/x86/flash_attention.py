"""Attention in float32 on several CPU cores, by BLAS and NumPy, whose exponentials use the vector units of x86.

Each core computes blocks of queries of one KV head, whose scores stay in its cache, as in FlashAttention (Dao et al.
2022).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from kvlab.backends.device import physical_cores
from kvlab.backends.x86 import sgemm
from kvlab.backends.x86.resumable import evaluate, maybe_yield, wait_for

Segment = tuple[mx.array, mx.array]
Mask = np.ndarray | str | None
BLOCK_KEYS, BLOCK_QUERY_ROWS = 1024, 256
"""Keys and rows of queries in a block. Their scores, 1 MB, stay in a core's own cache."""
MIN_BLOCK_QUERY_ROWS = 32
"""Fewest rows of queries in a block: products with fewer are slow."""
MAX_SCORES_ON_ONE_CORE = 1 << 16
"""Most scores that one core computes alone: starting work on another core takes as long. Check a change with ``kvlab
bench decode`` and ``kvlab bench pace``."""


@dataclass(frozen=True)
class BlockwiseResult:
    """The attention of queries over rows, before normalization, float32 ``[n_kv_heads, n, group, ...]``.

    Attributes:
        out: unnormalized sums of values.
        max_score: the largest score, 1 wide.
        sum_exp: sum of ``exp(score - max_score)``, 1 wide.
    """

    out: np.ndarray
    max_score: np.ndarray
    sum_exp: np.ndarray


def flash_attention(queries: mx.array, segments: Sequence[Segment], mask: Mask = None) -> BlockwiseResult:
    """Compute the attention of queries over rows, and return when it is done.

    Within :class:`kvlab.backends.x86.resumable.Resumable` work, the calling thread can be interrupted between blocks;
    the other cores continue.

    Args:
        queries: scaled, float32 ``[n_kv_heads, n, group, head_dim]``.
        segments: keys and values, float32 ``[1, n_kv_heads, length, head_dim]``, one segment behind the other.
        mask: visible rows of the last segment: ``"causal"`` (the queries' own rows are its last), bool ``[n, length]``,
            or None for all of it.

    Raises:
        ValueError: shapes that do not belong together: BLAS would read memory behind an array.
    """
    for keys, values in segments:
        if (keys.shape[1], keys.shape[3]) != (queries.shape[0], queries.shape[3]) or keys.shape[:3] != values.shape[:3]:
            raise ValueError(
                f"queries {queries.shape}, keys {keys.shape} and values {values.shape} do not belong together"
            )
    if isinstance(mask, np.ndarray) and mask.shape != (queries.shape[1], segments[-1][0].shape[2]):
        raise ValueError(f"the mask's shape {mask.shape} is not that of queries and keys of the last segment")
    evaluate(queries, segments)
    scaled = np.ascontiguousarray(np.asarray(queries))
    rows = [(_rows(keys), _rows(values)) for keys, values in segments]
    kv_heads, count, group, _ = scaled.shape
    widths = (rows[0][1].shape[2], 1, 1)
    length = sum(keys.shape[1] for keys, _ in rows)
    others = physical_cores() - 1 if scaled[..., 0].size * length > MAX_SCORES_ON_ONE_CORE else 0
    done = BlockwiseResult(*(np.empty((kv_heads, count, group, width), np.float32) for width in widths))
    bounds = _cuts(count, group, kv_heads, 1 + others)
    blocks = [(head, *bound) for bound in bounds for head in range(kv_heads)]
    left = iter(blocks)  # shared by all cores: each takes the next block when it has finished one

    def work() -> None:
        for head, start, end in left:
            mine = [(keys[head], values[head]) for keys, values in rows]
            seen = mask[start:end] if isinstance(mask, np.ndarray) else None
            if isinstance(mask, str):
                keys, values = mine[-1]
                mine[-1] = keys[: len(keys) - count + end], values[: len(keys) - count + end]
                seen = np.tri(end - start, dtype=bool)
            into = (
                array[head, start:end].reshape((end - start) * group, -1)
                for array in (done.out, done.max_score, done.sum_exp)
            )
            _block(scaled[head, start:end].reshape((end - start) * group, -1), mine, seen, *into)

    with sgemm.SINGLE_THREADED:
        busy = [_helpers().submit(work) for _ in blocks[1 : 1 + others]]
        try:
            work()
        finally:
            for _ in left:  # after an error or an early end, the other cores take no more blocks
                pass
            for helper in busy:
                if not helper.cancel():  # cancels work that is still queued
                    wait_for(helper)
    return done


def _cuts(count: int, group: int, kv_heads: int, cores: int) -> list[tuple[int, int]]:
    """Split ``count`` queries, of ``group`` rows each, so that all cores have the same work; return the bounds."""
    pieces = math.ceil(count * group / BLOCK_QUERY_ROWS)
    while kv_heads * pieces % cores and count * group >= MIN_BLOCK_QUERY_ROWS * (pieces + 1):
        pieces += 1
    return list(itertools.pairwise(count * i // pieces for i in range(pieces + 1)))


def _block(
    queries: np.ndarray,
    segments: Sequence[tuple[np.ndarray, np.ndarray]],
    seen: np.ndarray | None,
    out: np.ndarray,
    top: np.ndarray,
    total: np.ndarray,
) -> None:
    """Compute ``out``, ``top`` and ``total`` for rows of queries ``[rows, head_dim]`` of one KV head.

    ``seen``, bool ``[n, columns]``, says which of the last columns are visible to a query, whose rows are as many as
    a KV head has query heads.
    """
    length = sum(len(keys) for keys, _ in segments)
    column = 0 if seen is None else seen.shape[1] - length
    scratch = np.empty(len(queries) * min(BLOCK_KEYS, length), np.float32)
    top.fill(np.finfo(np.float32).min)  # not -inf, which gives nan for a row that sees none of the first keys
    total.fill(0)
    out.fill(0)
    for keys, values in segments:
        for start in range(0, len(keys), BLOCK_KEYS):
            some = keys[start : start + BLOCK_KEYS]
            scores = scratch[: len(queries) * len(some)].reshape(len(queries), -1)
            sgemm.product(queries, some, scores, transpose=True)
            if seen is not None:
                _hide(scores, seen, column)
                column += len(some)
            best = np.maximum(top, scores.max(axis=1, keepdims=True))
            np.subtract(scores, best, out=scores)
            np.exp(scores, out=scores)
            shrink = np.exp(top - best)
            total *= shrink
            total += scores.sum(axis=1, keepdims=True)
            out *= shrink
            sgemm.product(scores, values[start : start + BLOCK_KEYS], out, add=True)
            top[:] = best
            maybe_yield()


def _hide(scores: np.ndarray, seen: np.ndarray, column: int) -> None:
    """Set scores of rows that are not ``seen`` to -inf.

    The first column of ``scores`` is ``column`` of ``seen``; a negative one is before it, and visible.
    """
    skip, width = max(0, -column), scores.shape[1]
    if skip < width:
        hidden = scores.reshape(len(seen), -1, width)[..., skip:]
        np.copyto(hidden, -np.inf, where=~seen[:, None, column + skip : column + width])


def _rows(array: mx.array) -> np.ndarray:
    """Return the memory of an array ``[1, n_kv_heads, length, width]``, with contiguous rows."""
    rows = np.asarray(array)[0]
    return rows if rows.strides[2] == rows.itemsize else np.ascontiguousarray(rows)


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, physical_cores() - 1), thread_name_prefix="kvlab-attention")
