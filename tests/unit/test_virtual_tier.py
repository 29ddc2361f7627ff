"""A virtual tier holds what a tier with payloads would hold, and hits as often."""

from __future__ import annotations

import random

import pytest

from kvlab.replay import block_trace, read_capacity, simulate
from kvlab.store.gittins_order import GittinsOrder
from kvlab.store.replacement import Replacement, make
from kvlab.store.virtual_tier import VirtualTier


def chains(seed: int, requests: int = 300) -> list[list[int]]:
    """Return chains that grow, branch and come back."""
    chance, made, known = random.Random(seed), 1, [[0]]
    for _ in range(requests):
        old = chance.choice(known[-12:])
        old = old[: chance.randint(1, len(old))]
        grown = chance.randint(0, 4)
        known.append([*old, *range(made, made + grown)])
        made += grown
    return known


@pytest.mark.parametrize("name", ["lru", "lfu", "sieve"])
@pytest.mark.parametrize("capacity", [10, 40])
def test_it_hits_what_a_replay_hits(name: str, capacity: int) -> None:
    trace = block_trace("made", 16, chains(1))
    tier = VirtualTier(capacity, make(name, capacity))
    hits = []
    for request in range(len(trace)):
        before = tier.hits
        tier.use(trace.chain(request).tolist(), {})
        hits.append(tier.hits - before)
    assert hits == simulate(trace, name, read_capacity(str(capacity), trace)).hit_blocks.tolist()


@pytest.mark.parametrize("order", [make("lru", 30), GittinsOrder(30)])
def test_it_never_holds_more_than_its_capacity_and_names_all_that_left(order: Replacement) -> None:
    tier, held = VirtualTier(30, order), set()
    sizes = {key: 1 + key % 3 for key in range(2000)}
    for chain in chains(2):
        left = tier.use(chain, sizes)
        held = (held | {key for key in chain if key in tier}) - (set(left) - set(chain))
        assert sum(sizes[key] for key in held) <= 30
        assert all(key in tier for key in held) and len(tier) == len(held)


def test_a_key_with_others_behind_it_stays_and_so_does_what_is_kept() -> None:
    tier = VirtualTier(4, make("lru", 4))
    tier.use([1, 2], {})
    tier.use([3], {})
    assert tier.evict(kept={2}) == 3
    assert tier.evict(kept={2}) is None
    assert tier.evict() == 2 and tier.evict() == 1 and tier.evict() is None


def test_a_forgotten_key_and_those_behind_it_are_no_hits_until_they_are_used_again() -> None:
    tier = VirtualTier(8, make("lru", 8))
    tier.use([1, 2, 3], {})
    tier.forget(2)
    tier.use([1, 2, 3], {})
    assert tier.hits == 1
    tier.use([1, 2, 3], {})
    assert tier.hits == 4


def test_the_end_of_a_cut_request_is_taken_in_without_its_head() -> None:
    tier = VirtualTier(8, GittinsOrder(8))
    tier.use([3], {}, root=2)
    tier.use([1, 2, 3], {})
    assert all(key in tier for key in (1, 2, 3)) and len(tier) == 3
