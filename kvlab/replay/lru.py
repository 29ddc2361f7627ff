"""Counts of LRU at any capacities, from one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvlab.replay.capacity import BLOCKS, Capacity
from kvlab.replay.counts import ReplayCounts
from kvlab.replay.stack_distances import StackDistances, stack_distances
from kvlab.replay.trace import BlockTrace

LRU = "lru"


def lru_counts(
    trace: BlockTrace, capacities: Sequence[Capacity], distances: StackDistances | None = None
) -> list[ReplayCounts]:
    """Count what LRU hits at each capacity: the counts of :func:`simulate`, without replaying each one."""
    found = stack_distances(trace) if distances is None else distances
    return [_counts(found, capacity) for capacity in capacities]


def _counts(found: StackDistances, capacity: Capacity) -> ReplayCounts:
    trace = found.trace
    in_blocks = capacity.unit == BLOCKS
    amount = capacity.amount
    hits = found.hit_blocks(amount) if in_blocks else found.hit_blocks_of_tokens(amount)
    fitting = _fitting(trace, amount, in_blocks)
    insertions = int(np.maximum(fitting - hits, 0).sum())
    return ReplayCounts(trace, LRU, capacity, hits, insertions - _left_over(trace, amount, in_blocks), insertions)


def _fitting(trace: BlockTrace, amount: int, in_blocks: bool) -> np.ndarray:
    """Return how many blocks of each chain a tier holds that holds nothing else, int64 ``[requests]``."""
    if in_blocks:
        return np.minimum(trace.lengths, amount)
    whole = np.minimum(trace.lengths - trace.partial, amount // trace.block_tokens)
    last = trace.blocks[np.maximum(trace.offsets[1:] - 1, 0)] if len(trace.blocks) else np.zeros(len(trace), np.int64)
    rest = trace.partial & (whole == trace.lengths - 1)
    return whole + (rest & (whole * trace.block_tokens + trace.sizes[last] <= amount))


def _left_over(trace: BlockTrace, amount: int, in_blocks: bool) -> int:
    """Return how many blocks are resident at the end: the top of the stack, as far as it fits."""
    last = np.zeros(trace.unique, np.int64)
    last[trace.blocks] = np.repeat(np.arange(len(trace)), trace.lengths)
    if in_blocks:
        return min(trace.unique, amount)
    order = np.lexsort((trace.depths, -last))
    return int(np.searchsorted(np.cumsum(trace.sizes[order]), amount, side="right"))
