"""LRU at every capacity from one pass, beside replays of each capacity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.replay import BlockTrace, Capacity, block_trace, lru_counts, simulate, stack_distances
from kvlab.replay.capacity import BLOCKS, TOKENS
from kvlab.replay.dominance import earlier_and_greater
from tests.replay_kit import CHAINS, trace_of


def capacities(trace: BlockTrace, unit: str) -> list[Capacity]:
    least, most = (1, trace.unique) if unit == BLOCKS else (trace.block_tokens, int(trace.sizes.sum()))
    return [Capacity(str(amount), unit, amount, 0.0) for amount in range(least, most + 3)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=60))
def test_earlier_and_greater_counts_as_the_definition_says(items: list[tuple[int, int]]) -> None:
    values, weights = np.array([v for v, _ in items], np.int64), np.array([w for _, w in items], np.int64)
    wanted = [sum(w for v, w in items[:at] if v > value) for at, (value, _) in enumerate(items)]
    assert earlier_and_greater(values, weights).tolist() == wanted


@pytest.mark.parametrize("unit", [BLOCKS, TOKENS])
@given(CHAINS)
def test_one_pass_counts_of_every_request_what_a_replay_through_the_tier_counts(
    unit: str, chains: list[tuple[list[int], int]]
) -> None:
    trace = trace_of(chains)
    sizes = capacities(trace, unit)
    for one, found in zip(sizes, lru_counts(trace, sizes), strict=True):
        replayed = simulate(trace, "lru", one)
        assert found.hit_blocks.tolist() == replayed.hit_blocks.tolist()
        assert (found.insertions, found.evictions) == (replayed.insertions, replayed.evictions)


@given(st.lists(st.integers(0, 8), min_size=1, max_size=60))
def test_distances_of_single_blocks_are_those_of_a_stack(uses: list[int]) -> None:
    found = stack_distances(block_trace("made", 1, [[block] for block in uses]))
    stack: list[int] = []
    for block, distance in zip(uses, found.distance.tolist(), strict=True):
        assert distance == (stack.index(block) + 1 if block in stack else 0)
        stack = [block, *(other for other in stack if other != block)]


@given(CHAINS)
def test_the_curve_has_the_hits_of_all_capacities(chains: list[tuple[list[int], int]]) -> None:
    found = stack_distances(trace_of(chains))
    curve = found.curve()
    assert len(curve) == found.trace.unique + 1
    assert curve.tolist() == [int(found.hit_blocks(capacity).sum()) for capacity in range(len(curve))]


def test_a_longer_chain_than_the_tier_keeps_its_head() -> None:
    trace = block_trace("made", 4, [[1, 2, 3, 4], [1, 2, 3, 4]])
    (found,) = lru_counts(trace, [Capacity("3", BLOCKS, 3, 0.0)])
    assert found.hit_blocks.tolist() == [0, 3]


def test_runs_are_few_where_requests_continue_one_another() -> None:
    turns = [list(range(100 * turn)) for turn in range(1, 21)]
    found = stack_distances(block_trace("made", 16, turns))
    assert len(found.request) == 2 * len(turns) - 1, "each turn is the last one's chain, and what is new"
