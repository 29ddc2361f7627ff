"""Attention of float32 on a CPU's cores, by BLAS and NumPy, whose exponentials use the vector units of x86.

Each core takes KV heads and blocks of queries whose scores stay in its cache, as in FlashAttention (Dao et al. 2022).
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
KEYS, ROWS = 1024, 256
"""Keys and rows of queries at a time: their scores, 1 MB, stay in a core's own cache."""
FEWEST = 32
"""Rows of queries at a time, or small products would be slow."""
FEW = 1 << 16
"""Scores up to which other cores are not asked: that takes as long."""


@dataclass(frozen=True)
class BlockwiseResult:
    """What queries got from rows, float32 ``[n_kv_heads, n, group, ...]``.

    Attributes:
        out: unnormalized sums of values.
        max_score: the largest score, 1 wide.
        sum_exp: sum of ``exp(score - max_score)``, 1 wide.
    """

    out: np.ndarray
    max_score: np.ndarray
    sum_exp: np.ndarray


def flash_attention(queries: mx.array, runs: Sequence[Segment], mask: Mask = None) -> BlockwiseResult:
    """Compute what queries get from rows, at once. Raises ValueError for a mask of another shape.

    It steps aside between blocks (:mod:`kvlab.backends.x86.resumable`); the other cores go on meanwhile.

    Args:
        queries: scaled, float32 ``[n_kv_heads, n, group, head_dim]``.
        runs: keys and values, float32 ``[1, n_kv_heads, length, head_dim]``, one run behind the other.
        mask: what of the last run is visible: ``"causal"`` (the queries' own rows are its last), bool ``[n, length]``,
            or None for all of it.
    """
    if isinstance(mask, np.ndarray) and mask.shape != (queries.shape[1], runs[-1][0].shape[2]):
        raise ValueError(f"the mask's shape {mask.shape} is not that of queries and keys of the last run")
    evaluate(queries, runs)
    scaled = np.ascontiguousarray(np.asarray(queries))
    rows = [(_rows(keys), _rows(values)) for keys, values in runs]
    kv_heads, count, group, _ = scaled.shape
    widths = (rows[0][1].shape[2], 1, 1)
    length = sum(keys.shape[1] for keys, _ in rows)
    others = physical_cores() - 1 if scaled[..., 0].size * length > FEW else 0
    done = BlockwiseResult(*(np.empty((kv_heads, count, group, width), np.float32) for width in widths))
    bounds = _cuts(count, group, kv_heads, 1 + others)
    blocks = [(head, *bound) for bound in bounds for head in range(kv_heads)]
    left = iter(blocks)  # shared: whoever is through with a block takes the next

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
            for _ in left:  # whoever leaves early leaves nothing to do
                pass
            for helper in busy:
                if not helper.cancel():  # one that never began, because another's work is before it
                    wait_for(helper)
    return done


def _cuts(count: int, group: int, kv_heads: int, cores: int) -> list[tuple[int, int]]:
    """Where to cut ``count`` queries, of ``group`` rows each, so that all cores have the same to do."""
    pieces = math.ceil(count * group / ROWS)
    while kv_heads * pieces % cores and count * group >= FEWEST * (pieces + 1):
        pieces += 1
    return list(itertools.pairwise(count * i // pieces for i in range(pieces + 1)))


def _block(
    queries: np.ndarray,
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
    seen: np.ndarray | None,
    out: np.ndarray,
    top: np.ndarray,
    total: np.ndarray,
) -> None:
    """Fill in ``out``, ``top`` and ``total`` for rows of queries ``[rows, head_dim]`` of one KV head.

    ``seen``, bool ``[n, columns]``, is about the last columns, for as many rows in turn as a KV head has query heads.
    """
    length = sum(len(keys) for keys, _ in runs)
    column = 0 if seen is None else seen.shape[1] - length
    room = np.empty(len(queries) * min(KEYS, length), np.float32)
    top.fill(np.finfo(np.float32).min)  # not -inf, of which a row that sees none of the first keys would make nan
    total.fill(0)
    out.fill(0)
    for keys, values in runs:
        for start in range(0, len(keys), KEYS):
            some = keys[start : start + KEYS]
            scores = room[: len(queries) * len(some)].reshape(len(queries), -1)
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
            sgemm.product(scores, values[start : start + KEYS], out, add=True)
            top[:] = best
            maybe_yield()


def _hide(scores: np.ndarray, seen: np.ndarray, column: int) -> None:
    """Give -inf to scores that ``seen`` says no to; they begin at its ``column``, or before it: below 0."""
    skip, width = max(0, -column), scores.shape[1]
    if skip < width:
        hidden = scores.reshape(len(seen), -1, width)[..., skip:]
        np.copyto(hidden, -np.inf, where=~seen[:, None, column + skip : column + width])


def _rows(array: mx.array) -> np.ndarray:
    """The memory of ``[1, n_kv_heads, length, width]``, of which the rows are in one piece each."""
    rows = np.asarray(array)[0]
    return rows if rows.strides[2] == rows.itemsize else np.ascontiguousarray(rows)


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, physical_cores() - 1), thread_name_prefix="kvlab-attention")
