"""Replay a trace through one tier: request by request, with any replacement policy of the store."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from kvlab.replay.capacity import BLOCKS, Capacity
from kvlab.replay.counts import ReplayCounts
from kvlab.replay.orders import TraceClock, order_for
from kvlab.replay.tier import ReplayTier
from kvlab.replay.trace import BlockTrace

Told = Callable[[int], object]
"""Is told how many requests were replayed since the last call."""
TELL_EVERY = 256


def simulate(trace: BlockTrace, replace: str, capacity: Capacity, told: Told = lambda _: None) -> ReplayCounts:
    """Replay a trace with one tier, and count.

    A request finds its resident prefix, which is touched from leaf to head; its chain stays while it runs; at its end
    its missing blocks enter, parents first, as far as others may leave for them. Requests run one after the other, in
    the order of their times. What an answer adds is in the next request's chain, if there is one.

    A trace without parents goes through the replacement policy alone, block by block.
    """
    if trace.is_plain and capacity.unit == BLOCKS:
        with collector_paused():
            return _simulate_plain(trace, replace, capacity, told)
    sizes = np.ones(trace.unique, np.int64) if capacity.unit == BLOCKS else trace.sizes
    tier = ReplayTier(
        capacity.amount,
        replace,
        parents=trace.parents.tolist(),
        sizes=sizes.tolist(),
        depths=trace.depths.tolist(),
        block_tokens=trace.block_tokens,
        chains=lambda: (trace.chain(request).tolist() for request in range(len(trace))),
    )
    hits = np.zeros(len(trace), np.int64)
    times, asked = trace.times.tolist(), trace.asked_blocks.tolist()
    with collector_paused():
        for request in range(len(trace)):
            chain = trace.chain(request).tolist()
            hits[request] = found = tier.start(chain[: asked[request]], times[request])
            tier.end(chain, found)
            if request % TELL_EVERY == TELL_EVERY - 1:
                told(TELL_EVERY)
    told(len(trace) % TELL_EVERY)
    return ReplayCounts(trace, replace, capacity, hits, tier.evictions, tier.insertions)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector of cyclic garbage: a replay makes many objects and no cycles, and is a sixth quicker."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _simulate_plain(trace: BlockTrace, replace: str, capacity: Capacity, told: Told) -> ReplayCounts:
    """Replay single blocks: a miss enters at once."""
    clock = TraceClock()
    order = order_for(replace, capacity.amount, clock, lambda: ([block] for block in trace.blocks.tolist()))
    expired, expect = getattr(order, "expired", None), getattr(order, "expect", None)
    size, evictions, insertions, hit = capacity.amount, 0, 0, []
    owner = np.flatnonzero(trace.lengths)
    times = trace.times[owner].tolist()
    for at, block in enumerate(trace.blocks.tolist()):
        clock.begin(times[at])
        while expired is not None and (key := expired()) is not None:
            order.remove(key)
            evictions += 1
        if block in order:
            order.touch(block)
            hit.append(at)
        else:
            if expect is not None:
                expect(block)  # ARC adapts before it evicts
            while len(order) >= size and (victim := order.victim()) is not None:
                order.remove(victim)
                evictions += 1
            order.admit(block)
            insertions += 1
        if at % TELL_EVERY == TELL_EVERY - 1:
            told(TELL_EVERY)
    told(len(trace) - len(trace.blocks) // TELL_EVERY * TELL_EVERY)
    hits = np.zeros(len(trace), np.int64)
    hits[owner[hit]] = 1
    return ReplayCounts(trace, replace, capacity, hits, evictions, insertions)
