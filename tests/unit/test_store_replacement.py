"""Replacement policies: hand-computed sequences, and exact hit counts on real traces."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from kvlab.errors import StoreError
from kvlab.store.replacement import REPLACEMENTS, Replacement, make

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_traces = pytest.mark.skipif(not (SHARED / "caffeine-lirs").is_dir(), reason="../shared/data is not there")


def evictions(policy: Replacement, trace: Iterable[int]) -> tuple[int, list[int]]:
    """Replay a trace of unit-size keys: the misses, and the keys that left, in order."""
    misses, left = 0, []
    for key in trace:
        if key in policy:
            policy.touch(key)
            continue
        misses += 1
        while len(policy) >= policy.capacity:
            victim = policy.victim()
            assert isinstance(victim, int)
            policy.remove(victim)
            left.append(victim)
        policy.admit(key)
    return misses, left


@pytest.mark.parametrize(
    ("name", "trace", "left"),
    [
        ("lru", "0123 0 4 1 5", "1 2 3"),
        ("lfu", "0123 00 1 23 4 5 0", "1 4"),
        ("sieve", "0123 0 2 4 5 6", "1 3 4"),  # the hand passes 0 and 2, and goes on to 4, which was never visited
        ("gdsf", "0123 0 1 4 5", "2 3"),
        ("cost", "0123 0 1 4 5", "2 3"),
    ],
)
def test_policy_evicts_as_computed_by_hand(name: str, trace: str, left: str) -> None:
    keys = [int(key) for key in trace if key != " "]
    assert evictions(make(name, 4), keys)[1] == [int(key) for key in left.split()]


def test_s3fifo_evicts_as_computed_by_hand() -> None:
    # Small queue of 1, main of 9. 0 and 1 are hit twice and promoted; the rest are one-hit wonders.
    keys = [0, 1, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    policy = make("s3fifo", 10)
    assert evictions(policy, keys) == (12, [2, 3])
    assert evictions(policy, [2]) == (1, [4])  # 2 is a ghost: it enters main
    assert evictions(policy, [12, 13, 14, 15, 16, 17])[1] == [5, 6, 7, 8, 9, 10]
    assert 0 in policy and 1 in policy and 2 in policy


def test_gdsf_prefers_small_and_cost_prefers_costly() -> None:
    for name, victim in (("gdsf", "big"), ("cost", "cheap")):
        policy = make(name, 100)
        policy.admit("big", 50, 90.0)
        policy.admit("cheap", 10, 1.0)
        policy.admit("small", 10, 30.0)
        assert policy.victim() == victim


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_policy_keeps_the_contract(name: str) -> None:
    policy = make(name, 8)
    assert policy.victim() is None
    for key in range(8):
        policy.admit(key, 1, 1.0)
    for key in (0, 0, 0, 1, 1, 2):
        policy.touch(key)
    with pytest.raises(KeyError):
        policy.admit(3)
    with pytest.raises(KeyError):
        policy.touch(99)
    with pytest.raises(KeyError):
        policy.remove(99)
    assert policy.victim(lambda key: False) is None
    assert policy.victim(lambda key: key == 0) == 0
    assert len(policy) == 8 and 3 in policy and 99 not in policy
    left = []
    while len(policy):
        victim = policy.victim(lambda key: key != 5 or len(policy) == 1)
        assert victim in policy
        policy.remove(victim)
        left.append(victim)
    assert sorted(left) == list(range(8)) and left[-1] == 5  # type: ignore[type-var]
    policy.admit("again")
    policy.remove("again", evicted=False)
    assert len(policy) == 0


def test_unknown_name_raises_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(StoreError, match=", ".join(REPLACEMENTS)):
        make("mru", 1)


def trace(name: str) -> list[int]:
    with gzip.open(SHARED / "caffeine-lirs" / f"{name}.trace.gz", "rt") as file:
        return [int(line) for line in file if line.strip().isdigit()]


@needs_traces
@pytest.mark.parametrize("case", ["multi1@500", "multi1@1000", "gli@1000", "cpp@100", "ps@500"])
@pytest.mark.parametrize(
    ("name", "reference"), [("lru", "LRU"), ("lfu", "LFU"), ("sieve", "SIEVE"), ("s3fifo", "S3-FIFO")]
)
def test_exact_hits_on_real_traces(case: str, name: str, reference: str) -> None:
    expected = json.loads((SHARED / "reference.json").read_text())["computed_independently"]
    requests = trace(case.partition("@")[0])
    misses, _ = evictions(make(name, int(case.partition("@")[2])), requests)
    assert len(requests) - misses == expected["caffeine_lirs_unit_size_hits"][case]["hits"][reference]
