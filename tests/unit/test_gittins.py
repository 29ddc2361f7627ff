"""The Gittins policy: its indices, and how it compares with LRU on traffic of several kinds."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from kvlab.replay import BlockTrace, block_trace, read_capacity, simulate
from kvlab.store.replacement import make
from kvlab.store.replacement.gittins import LEAD, LEAD_KEYS, LOSS, Gittins
from kvlab.store.return_rates import AGES, gittins_indices

CAPACITIES = ("2%", "5%", "10%", "50%")


def agents(seed: int, requests: int = 500) -> BlockTrace:
    """Return coding agents that share a head, run loops of tool calls, and wait for their users between loops."""
    chance = random.Random(seed)
    chains: list[list[int]] = []
    head, made = list(range(8)), 8
    open_agents: list[tuple[float, list[int]]] = [(chance.random(), list(head)) for _ in range(12)]
    while len(chains) < requests:
        open_agents.sort(key=lambda agent: agent[0])
        time, chain = open_agents.pop(0)
        grown = chance.randint(1, 4)
        chain = [*chain, *range(made, made + grown)]
        made += grown
        chains.append(chain)
        wait = chance.expovariate(1.0) if chance.random() < 0.8 else 20 * chance.expovariate(1.0)
        is_over = len(chain) > 60
        open_agents.append((time + wait, list(head) if is_over else chain))
    return block_trace("agents", 16, chains)


def chats(seed: int, requests: int = 700) -> BlockTrace:
    """Return conversations of which half end after each turn, and whose last block the next turn replaces."""
    chance = random.Random(seed)
    chains: list[list[int]] = []
    due: list[tuple[float, list[int]]] = []
    made = 4
    for now in range(requests):
        due.sort(key=lambda one: one[0])
        chain = due.pop(0)[1] if due and due[0][0] <= now else [0, 1]
        grown = chance.randint(2, 5)
        chain = [*chain, *range(made, made + grown)]
        made += grown
        chains.append(chain)
        if chance.random() < 0.5:
            due.append((now + 30 * chance.expovariate(1.0), chain[:-1]))
    return block_trace("chats", 16, chains)


def scans(seed: int) -> BlockTrace:
    """Return skewed uses of single blocks, with scans of blocks that are used once."""
    chance, made, keys = random.Random(seed), 1000, []
    for _ in range(25):
        keys += [int(200 * chance.random() ** 3) for _ in range(80)]
        keys += range(made, made + 60)
        made += 60
    return block_trace("scans", 1, [[key] for key in keys])


def loops(seed: int) -> BlockTrace:
    """Return one list of blocks over and over, which is the worst case of LRU."""
    return block_trace("loops", 1, [[key] for _ in range(15) for key in range(150 + seed)])


@pytest.mark.parametrize(
    ("kind", "seed"),
    [(agents, 1), (chats, 1), (scans, 1), (loops, 1), (chats, 21), (chats, 27), (agents, 26)],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_gittins_is_not_behind_lru(kind: Callable[[int], BlockTrace], seed: int) -> None:
    """Its rules would let it be behind by little; traffic of these kinds does not bring that about."""
    trace = kind(seed)
    for text in CAPACITIES:
        capacity = read_capacity(text, trace)
        hits, lru = (simulate(trace, name, capacity).hits for name in ("gittins", "lru"))
        assert hits >= lru, f"{trace.name} at {text}: {hits} against {lru}"


@pytest.mark.parametrize(("most", "now", "follows"), [(0, 0, True), (0, -4, False), (100, 47, True), (100, 46, False)])
def test_gittins_gives_back_no_more_than_half_of_what_it_gained(most: int, now: int, follows: bool) -> None:
    policy = Gittins(96)
    policy._follows, policy._hits = True, 1000
    for ahead in (most, now):
        policy._lru.hits = policy._hits - ahead
        policy._choose()
    assert policy._follows is follows
    assert policy._caution == (1 if follows else 2)


def walk(seed: int, step: int, requests: int = 2000) -> BlockTrace:
    """Return single blocks along a random walk, which is where LRU is hard to beat."""
    chance, at = random.Random(seed), 0
    chains: list[list[int]] = []
    for _ in range(requests):
        at += chance.randint(-step, step)
        chains.append([at])
    return block_trace("walk", 1, chains)


@pytest.mark.parametrize(("trace", "capacity"), [(walk(1, 1), 3), (walk(2, 6), 5), (walk(3, 6), 10), (agents(1), 60)])
def test_gittins_is_lru_to_the_block_until_its_order_has_shown_a_lead(trace: BlockTrace, capacity: int) -> None:
    tier = read_capacity(str(capacity), trace)
    hits, lru = (simulate(trace, name, tier).hit_blocks for name in ("gittins", "lru"))
    differing = np.flatnonzero(hits != lru)
    known = int(differing[0]) if len(differing) else len(hits)
    assert known > 8 * LEAD_KEYS or not len(differing)
    behind = (hits - lru).cumsum().min()
    assert behind >= -4 * (LOSS * (LEAD * capacity + LEAD_KEYS) + capacity)


def test_what_the_owner_dropped_is_no_hit_of_lru_either() -> None:
    policy = make("gittins", 8)
    for key in range(4):
        policy.link(key, key - 1 if key else None, key)
        policy.admit(key)
    for key in (3, 2):
        policy.remove(key, evicted=False)
    for key in (1, 0):
        policy.touch(key)
    policy.link(2, 1, 2)
    policy.admit(2)
    policy.touch(0)  # ends the request
    assert policy._hits == policy._lru.hits == policy._gittins.hits == 2  # type: ignore[attr-defined]


def test_gittins_keeps_much_of_a_loop_that_lru_always_misses() -> None:
    trace = loops(0)
    capacity = read_capacity("50%", trace)
    assert simulate(trace, "lru", capacity).hits == 0
    assert simulate(trace, "gittins", capacity).hits > 0.25 * (len(trace.blocks) - trace.unique)


def test_index_is_the_hazard_where_that_is_constant_and_where_it_falls() -> None:
    constant, falling = np.full(AGES, 0.01), 0.01 / np.arange(1, AGES + 1)
    index = gittins_indices(np.stack([constant, falling]))
    np.testing.assert_allclose(index[0], constant)
    np.testing.assert_allclose(index[1], falling)


def test_index_before_a_certain_return_looks_ahead_to_it() -> None:
    hazard = np.full(AGES, 1e-9)
    hazard[10] = 10.0
    index = gittins_indices(hazard[None])[0]
    assert (np.diff(index[:11]) > 0).all() and index[11] < 1e-8


def test_evicted_block_that_the_owner_dropped_is_forgotten() -> None:
    policy = make("gittins", 4)
    for key in range(4):
        policy.admit(key)
    policy.remove(2, evicted=False)
    assert 2 not in policy and len(policy) == 3
    left: list[object] = []
    while (victim := policy.victim()) is not None:
        policy.remove(victim)
        left.append(victim)
    assert set(left) == {0, 1, 3}
