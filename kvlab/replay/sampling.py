"""Sampled replays: a share of the blocks, chosen by a hash of their chained numbers, in a tier of that share.

SHARDS (Waldspurger et al., "Efficient MRC Construction with SHARDS", FAST 2015): a block is in the sample in all of
its uses or in none, so that a tier of ``rate`` times the capacity sees ``rate`` times the reuse. Deviations: the chain
of a request becomes the chain of its sampled blocks, so that parents still outlive their children. Uses of blocks that
were never seen miss at any capacity and are counted exactly; only the misses on blocks that had left are scaled up,
which corrects for popular blocks being in the sample or not, as SHARDS-adj does.
"""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any

import numpy as np

from kvlab.counts import counted
from kvlab.replay.capacity import BLOCKS, Capacity
from kvlab.replay.chains import numbered_chains
from kvlab.replay.counts import ReplayCounts
from kvlab.replay.errors import TraceError
from kvlab.replay.simulation import Told, simulate
from kvlab.replay.trace import NOTES, BlockTrace

MIN_SAMPLED_BLOCKS = 100
"""Fewer blocks in a tier say nothing: the capacity and the rate must leave so many."""


def sample(trace: BlockTrace, rate: float, seed: int = 0) -> BlockTrace:
    """Return the trace with about ``rate`` of its different blocks. Raises ``TraceError`` for an impossible rate."""
    if not 0 < rate <= 1:
        raise TraceError(f"a sample of {rate:g} is impossible; write a share above 0 and up to 1, such as 0.1")
    chosen = _hashed(np.arange(trace.unique, dtype=np.uint64), seed) < np.uint64(rate * 2.0**32)
    kept = chosen[trace.blocks]
    owner = np.repeat(np.arange(len(trace)), trace.lengths)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=len(trace)))]).astype(np.int64)
    ends = trace.partial & (trace.lengths > 0)
    partial = np.zeros(len(trace), bool)
    partial[ends] = kept[trace.offsets[1:][ends] - 1]
    lengths = np.diff(offsets)
    rest = np.zeros(len(trace), np.int64)
    rest[ends] = trace.place_tokens[trace.offsets[1:][ends] - 1]
    tokens = lengths * trace.block_tokens - np.where(partial, trace.block_tokens - rest, 0)
    blocks = numbered_chains(trace.blocks[kept], offsets)
    none: dict[str, Any] = {name: np.zeros(len(trace), np.int64) for name in NOTES}
    return changed(trace, blocks=blocks, offsets=offsets, partial=partial, input_tokens=tokens, **none)


def simulate_sampled(
    trace: BlockTrace, replace: str, capacity: Capacity, rate: float, told: Told = lambda _: None, *, seed: int = 0
) -> ReplayCounts:
    """Estimate what :func:`simulate` would count, from a share of the blocks.

    Per request there are no counts. Raises ``TraceError`` where the sampled tier would hold too few blocks.
    """
    part = sample(trace, rate, seed)
    seen = part.unique / max(trace.unique, 1)  # by chance not quite the rate: the tier gets what the blocks got
    amount = round(seen * capacity.amount)
    blocks = amount if capacity.unit == BLOCKS else amount // trace.block_tokens
    if blocks < MIN_SAMPLED_BLOCKS:
        raise TraceError(
            f"a sample of {rate:g} leaves {counted(blocks, 'block')} of the capacity {capacity}; "
            "sample more, or replay it whole"
        )
    found = simulate(part, replace, changed(capacity, amount=amount), told)
    lost = (len(part.blocks) - found.hits - part.unique) / seen
    scaled = (round(found.evictions / seen), round(found.insertions / seen))
    return ReplayCounts(trace, replace, capacity, np.zeros(len(trace), np.int64), *scaled, sampled=rate, lost=lost)


def _hashed(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Mix 64-bit numbers to 32 bits (the finaliser of SplitMix64, Steele et al., OOPSLA 2014)."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15 * (seed + 1) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(32)
