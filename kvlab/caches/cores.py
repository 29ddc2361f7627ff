"""Attention of float32 on a CPU's cores, by BLAS and NumPy, whose exponentials use the vector units of x86.

Each core takes KV heads and blocks of queries whose scores stay in its cache, as in FlashAttention (Dao et al. 2022).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from kvlab import blas
from kvlab.backend import physical_cores
from kvlab.caches.exponential import is_composed

Run = tuple[mx.array, mx.array]
Mask = np.ndarray | str | None
Meanwhile = Callable[[], object] | None
BLOCK = 1 << 18
"""Scores computed at a time: 1 MB, what a core's own cache holds."""
FEWEST = 16
"""Rows of scores a block, or small products would be slow."""
FEW = 1 << 16
"""Scores up to which other cores are not asked: that takes as long."""


def are_quicker() -> bool:
    """Whether attention of float32 had better be computed here than by MLX."""
    return is_composed() and blas.is_here()


@dataclass(frozen=True)
class Weighed:
    """What queries got from rows, float32 ``[n_kv_heads, n, group, ...]``.

    Attributes:
        out: unnormalized sums of values.
        top: the largest score, 1 wide.
        total: sum of ``exp(score - top)``, 1 wide.
    """

    out: np.ndarray
    top: np.ndarray
    total: np.ndarray


def weigh(queries: mx.array, runs: Sequence[Run], mask: Mask = None, meanwhile: Meanwhile = None) -> Weighed:
    """What queries get from rows, computed at once.

    Args:
        queries: scaled, float32 ``[n_kv_heads, n, group, head_dim]``.
        runs: keys and values, float32 ``[1, n_kv_heads, length, head_dim]``, one run behind the other.
        mask: what of the last run is visible: ``"causal"`` (the queries' own rows are its last), bool ``[n, length]``,
            or None for all of it.
        meanwhile: called as soon as other cores are at work.
    """
    mx.eval(queries, runs)
    scaled = np.ascontiguousarray(np.asarray(queries))
    rows = [(_rows(keys), _rows(values)) for keys, values in runs]
    kv_heads, count, group, _ = scaled.shape
    widths = (rows[0][1].shape[2], 1, 1)
    length = sum(keys.shape[1] for keys, _ in rows)
    others = physical_cores() - 1 if scaled[..., 0].size * length > FEW else 0
    done = Weighed(*(np.empty((kv_heads, count, group, width), np.float32) for width in widths))
    step = max(1, FEWEST // group, BLOCK // (group * length))
    blocks = [(head, at, min(at + step, count)) for at in range(0, count, step) for head in range(kv_heads)]
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
                array[head, start:end].reshape((end - start) * group, -1) for array in (done.out, done.top, done.total)
            )
            _block(scaled[head, start:end].reshape((end - start) * group, -1), mine, seen, *into)

    with blas.ONE_THREAD:
        busy = [_helpers().submit(work) for _ in blocks[1 : 1 + others]]
        if meanwhile is not None:
            meanwhile()
        work()
        for helper in busy:
            helper.result()
    return done


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
    marks = list(itertools.accumulate((len(keys) for keys, _ in runs), initial=0))
    scores = np.empty((len(queries), marks[-1]), np.float32)
    parts = [scores[:, start:end] for start, end in itertools.pairwise(marks)]
    for part, (keys, _) in zip(parts, runs, strict=True):
        blas.product(queries, keys, part, transpose=True)
    if seen is not None:
        hidden = scores.reshape(len(seen), -1, marks[-1])[..., marks[-1] - seen.shape[1] :]
        np.copyto(hidden, -np.inf, where=~seen[:, None])
    np.max(scores, axis=1, keepdims=True, out=top)
    np.subtract(scores, top, out=scores)
    np.exp(scores, out=scores)
    np.sum(scores, axis=1, keepdims=True, out=total)
    for i, (part, (_, values)) in enumerate(zip(parts, runs, strict=True)):
        blas.product(part, values, out, add=i > 0)


def _rows(array: mx.array) -> np.ndarray:
    """The memory of ``[1, n_kv_heads, length, width]``, of which the rows are in one piece each."""
    rows = np.asarray(array)[0]
    return rows if rows.strides[2] == rows.itemsize else np.ascontiguousarray(rows)


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, physical_cores() - 1), thread_name_prefix="kvlab-attention")
