"""Misses of replacement policies: those of plain rewritings, of libCacheSim, of saved numbers and of published ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.replay.belady import Belady, Future
from kvlab.store.replacement import make
from tests.replacement_kit import (
    CASES,
    RANDOM,
    SHARED,
    SHARED_TRACES,
    capacity_of,
    libcachesim_misses,
    misses,
    random_trace,
    saved,
    trace_of,
)
from tests.replacement_reference import LIBCACHESIM, REFERENCES, arc, lirs

has_traces = (SHARED / "caffeine-lirs").is_dir()
needs_traces = pytest.mark.skipif(not has_traces, reason="../shared/data is not there")
cases = pytest.mark.parametrize("case", [*RANDOM, *(pytest.param(case, marks=needs_traces) for case in SHARED_TRACES)])

AS_LIBCACHESIM = ("fifo", "lru", "lfu", "clock", "sieve", "arc", "belady")
"""Policies that libCacheSim defines as kvlab does: the others differ as ``tests.replacement_reference`` says."""


@pytest.fixture(scope="module")
def library() -> Any:
    reason = "libCacheSim has no wheel for this platform, or is not installed"
    return pytest.importorskip("libcachesim", reason=reason, exc_type=ImportError)


# -- policies written anew --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
@given(trace=st.lists(st.integers(1, 24), max_size=150), capacity=st.integers(1, 20))
def test_policy_misses_where_a_plain_rewriting_of_its_paper_does(name: str, trace: list[int], capacity: int) -> None:
    assert misses(name, trace, capacity) == REFERENCES[name](trace, capacity)


@pytest.mark.parametrize("name", [name for name in REFERENCES if name != "belady"])  # that rewriting is slow
@pytest.mark.parametrize("capacity", [100, 150, 201])
def test_policy_with_shares_of_several_keys_misses_as_the_rewriting_does(name: str, capacity: int) -> None:
    for seed in range(4):
        trace = random_trace(seed, 1500)
        assert misses(name, trace, capacity) == REFERENCES[name](trace, capacity)


@given(trace=st.lists(st.integers(1, 24), max_size=150), capacity=st.integers(1, 20))
def test_arc_that_is_not_told_of_the_next_key_adapts_one_eviction_later(trace: list[int], capacity: int) -> None:
    assert misses("arc", trace, capacity, expects=False) == arc(trace, capacity, late=True)


# -- libCacheSim ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBCACHESIM)
def test_rules_of_libcachesim_written_anew_miss_as_libcachesim_does(library: Any, name: str) -> None:
    _, rules, least = LIBCACHESIM[name]
    for capacity in {20, 100, 150} - {*range(least)}:
        for seed in range(3):
            trace = random_trace(seed, 1000)
            assert libcachesim_misses(library, name, trace, capacity) == rules(trace, capacity)


@cases
def test_libcachesim_misses_as_saved(library: Any, case: str) -> None:
    trace, expected = trace_of(case), saved()["misses"][case]["libcachesim"]
    assert {name: libcachesim_misses(library, name, trace, capacity_of(case)) for name in expected} == expected


# -- saved and published numbers --------------------------------------------------------------------------------------


@cases
def test_policies_miss_as_saved(case: str) -> None:
    trace, expected = trace_of(case), saved()["misses"][case]["kvlab"]
    assert {name: misses(name, trace, capacity_of(case)) for name in expected} == expected
    assert set(expected) == set(REFERENCES)


@pytest.mark.parametrize("case", CASES)
def test_saved_misses_are_those_of_libcachesim_where_it_defines_a_policy_alike(case: str) -> None:
    both = saved()["misses"][case]
    assert {name: both["kvlab"][name] for name in AS_LIBCACHESIM} == {
        name: both["libcachesim"][name] for name in AS_LIBCACHESIM
    }


@needs_traces
@pytest.mark.parametrize("case", SHARED_TRACES)
def test_hits_are_those_of_independent_computations(case: str) -> None:
    found = json.loads((SHARED / "reference.json").read_text())["computed_independently"]
    expected = found["caffeine_lirs_unit_size_hits"][case]
    ours = saved()["misses"][case]["kvlab"]
    for name, reference in (("fifo", "FIFO"), ("clock", "CLOCK"), ("arc", "ARC"), ("belady", "BELADY")):
        assert expected["requests"] - ours[name] == expected["hits"][reference]


@needs_traces
def test_hits_published_for_caffeine_are_those_of_its_rules_and_near_ours() -> None:
    published = json.loads((SHARED / "reference.json").read_text())["published"]["caffeine_wiki_multi1_500_hits"]
    trace, ours = trace_of("multi1@500"), saved()["misses"]["multi1@500"]["kvlab"]
    hits = {name: len(trace) - count for name, count in ours.items()}
    assert len(trace) - lirs(trace, 500, caffeine=True) == published["lirs"]
    assert hits["lirs"] == pytest.approx(published["lirs"], rel=0.002)
    assert hits["wtinylfu"] == pytest.approx(published["w_tinylfu"], rel=0.003)
    assert hits["belady"] == published["belady"] - 1
    assert _hits_with_bypass(trace, 500) == published["belady"]


def _hits_with_bypass(trace: list[int], capacity: int) -> int:
    """Count hits of Belady's rule where a key whose next use is the farthest is not admitted."""
    future = Future([key] for key in trace)
    policy = Belady(capacity, future)
    hits = 0
    for now, key in enumerate(trace):
        future.advance()
        if key in policy:
            policy.touch(key)
            hits += 1
            continue
        if len(policy) == capacity:
            farthest = policy.victim()
            if future.next_use(farthest, now + 1) <= future.next_use(key, now + 1):
                continue
            policy.remove(farthest)
        policy.admit(key)
    return hits


def hand_never_wraps(trace: list[int], capacity: int) -> bool:
    """Whether SIEVE's victims leave in the order in which they were admitted: then its hand only went forward."""
    policy, admitted, latest = make("sieve", capacity), dict[object, int](), -1
    for now, key in enumerate(trace):
        if key in policy:
            policy.touch(key)
            continue
        if len(policy) == capacity:
            victim = policy.victim()
            if admitted[victim] < latest:
                return False
            latest = admitted[victim]
            policy.remove(victim)
        policy.admit(key)
        admitted[key] = now
    return True


@needs_traces
@pytest.mark.parametrize("case", SHARED_TRACES)
def test_sieve_misses_as_lfu_where_its_hand_never_wraps(case: str) -> None:
    trace, ours = trace_of(case), saved()["misses"][case]["kvlab"]
    assert hand_never_wraps(trace, capacity_of(case)) == (ours["sieve"] == ours["lfu"])
