"""What every replacement policy keeps on blocks of a prefix tree, and what single policies promise besides."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.errors import StoreError
from kvlab.replacement_names import replacement_names
from kvlab.replay.belady import Belady, Future
from kvlab.store.replacement import REPLACEMENTS, Replacement, make
from kvlab.store.replacement.arc import Arc
from kvlab.store.replacement.lirs import Lirs
from kvlab.store.replacement.tail_lru import TailLru
from kvlab.store.replacement.ttl import Ttl
from kvlab.store.replacement.wtinylfu import WTinyLfu

Path = tuple[int, ...]
"""A block, named by the way to it from the root; its parent is the way without the last step."""

NAMES = (*REPLACEMENTS, "belady")
ASKS_ONCE = (
    "fifo",
    "lru",
    "lfu",
    "sieve",
    "clock",
    "slru",
    "arc",
    "lirs",
    "wtinylfu",
    "ttl",
    "tail_lru",
    "shortest",
    "superseded",
    "belady",
)
"""Policies that do not ask again for a key that has descendants."""


def made(name: str, capacity: int, requests: Iterable[Iterable[Hashable]]) -> tuple[Replacement, Future]:
    future = Future(requests)
    return (Belady(capacity, future) if name == "belady" else make(name, capacity)), future


def chain(block: Path) -> list[Path]:
    """Return the blocks from the root to this one."""
    return [block[: at + 1] for at in range(len(block))]


@dataclass
class Tier:
    """A tier as the store's are: parents come before their children and leave after them; a request pins its chain."""

    policy: Replacement
    size: Callable[[Path], int] = lambda block: 1
    cost: float = 1.0
    held: dict[Path, int] = field(default_factory=dict)
    pinned: set[Path] = field(default_factory=set)
    left: list[Path] = field(default_factory=list)
    asked: int = 0

    def may_leave(self, key: Hashable) -> bool:
        self.asked += 1
        return key in self._leaves(key) and key not in self.pinned

    def _leaves(self, key: Hashable) -> set[Hashable]:
        assert isinstance(key, tuple) and key in self.held
        return set() if any((*key, step) in self.held for step in range(4)) else {key}

    def request(self, block: Path) -> int:
        """Use a chain, and return how many blocks of it were missing."""
        blocks = chain(block)
        self.pinned = set(blocks)
        there = [one for one in blocks if one in self.held]
        for one in reversed(there):
            self.policy.touch(one)
        for one in blocks[len(there) :]:
            if not self._make_space(self.size(one)):
                break
            self.policy.link(one, one[:-1], len(one) - 1)
            self.policy.admit(one, self.size(one), self.cost)
            self.held[one] = self.size(one)
        self.pinned = set()
        return len(blocks) - len(there)

    def _make_space(self, need: int) -> bool:
        while sum(self.held.values()) + need > self.policy.capacity:
            victim = self.policy.victim(self.may_leave)
            if victim is None:
                assert not any(self.may_leave(one) for one in self.held)
                return False
            assert isinstance(victim, tuple) and self.may_leave(victim)
            self.remove(victim, evicted=True)
            self.left.append(victim)
        return True

    def remove(self, block: Path, *, evicted: bool) -> None:
        self.policy.remove(block, evicted)
        del self.held[block]
        parent = block[:-1]
        if parent in self.held and self._leaves(parent):
            self.policy.freed(parent)

    def check(self) -> None:
        assert sum(self.held.values()) <= self.policy.capacity
        assert len(self.policy) == len(self.held)
        assert all(one in self.policy for one in self.held)


blocks_ = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)


@pytest.mark.parametrize("name", NAMES)
@given(
    uses=st.lists(st.tuples(blocks_, st.booleans()), max_size=40),
    sizes=st.lists(st.integers(1, 5), min_size=5, max_size=5),
    capacity=st.integers(1, 30),
)
def test_policy_keeps_capacity_and_evicts_what_may_leave(
    name: str, uses: list[tuple[Path, bool]], sizes: list[int], capacity: int
) -> None:
    policy, future = made(name, capacity, [chain(block) for block, _ in uses])
    tier = Tier(policy, size=lambda block: sizes[sum(block) % len(sizes)])
    for block, is_dropped in uses:
        future.advance()
        tier.request(block)
        tier.check()
        if is_dropped and block in tier.held and tier.may_leave(block):
            tier.remove(block, evicted=False)
            assert block not in policy
            tier.check()
    while tier.held:
        victim = policy.victim(tier.may_leave)
        assert isinstance(victim, tuple) and tier.may_leave(victim)
        tier.remove(victim, evicted=True)
    assert len(policy) == 0 and policy.victim() is None


@pytest.mark.parametrize("name", NAMES)
def test_block_larger_than_the_capacity_is_held_and_leaves(name: str) -> None:
    policy, _ = made(name, 3, [])
    for _ in range(3):
        policy.admit("large", 10)
        policy.touch("large")
        assert policy.victim() == "large" and len(policy) == 1
        policy.remove("large")
        assert "large" not in policy


@pytest.mark.parametrize("name", NAMES)
def test_absent_key_is_a_key_error_also_where_it_is_remembered(name: str) -> None:
    policy, _ = made(name, 2, [])
    for key in range(20):
        while len(policy) >= 2:
            policy.remove(policy.victim())
        policy.admit(key)
    for key in (key for key in range(20) if key not in policy):
        with pytest.raises(KeyError):
            policy.touch(key)
        with pytest.raises(KeyError):
            policy.remove(key)
        with pytest.raises(KeyError):
            policy.remove(key, evicted=False)
    with pytest.raises(KeyError):
        policy.admit(next(key for key in range(20) if key in policy))


@pytest.mark.parametrize("name", ASKS_ONCE)
def test_chain_is_asked_for_about_once_a_block_not_once_an_eviction(name: str) -> None:
    block = tuple([0] * 400)
    policy, future = made(name, 400, [chain(block)])
    tier = Tier(policy)
    future.advance()
    tier.request(block)
    tier.asked = 0
    while tier.held:
        victim = policy.victim(tier.may_leave)
        assert isinstance(victim, tuple)
        tier.remove(victim, evicted=True)
    assert tier.asked <= 4 * 400


@pytest.mark.parametrize("name", ["arc", "lirs", "wtinylfu"])
def test_memory_of_what_left_is_bounded_by_the_capacity(name: str) -> None:
    capacity = 30
    policy = make(name, capacity)
    for key in range(3000):
        for one in (key, key // 2, key // 3):
            if one in policy:
                policy.touch(one)
                continue
            while len(policy) >= capacity // 3:
                policy.remove(policy.victim())
            policy.admit(one, 3)
        if isinstance(policy, Arc):
            assert sum(map(len, (policy._once.ghosts, policy._again.ghosts))) * 3 <= 2 * capacity
        elif isinstance(policy, Lirs):
            assert len(policy._ghosts) * 3 <= 2 * capacity and len(policy._stack) * 3 <= 2 * capacity
            assert len(policy._known) == len(policy) + len(policy._ghosts)
        elif isinstance(policy, WTinyLfu):
            assert len(policy._counts) * 3 <= 10 * capacity


def test_key_that_left_for_another_reason_is_no_ghost() -> None:
    for policy in (Arc(4), Lirs(4)):
        for key in range(4):
            policy.admit(key)
        policy.remove(3, evicted=False)
        policy.admit(3)
        if isinstance(policy, Arc):
            assert 3 in policy._once.order and not policy._once.ghosts
        else:
            assert 3 in policy._queue and not policy._ghosts


# -- ttl --------------------------------------------------------------------------------------------------------------


def test_ttl_expires_keys_by_the_clock_it_is_given_leaves_first() -> None:
    now = [0.0]
    policy = Ttl(10, lifetime=60.0, clock=lambda: now[0])
    policy.admit("head")
    policy.admit("leaf")
    now[0] = 50.0
    policy.admit("other")
    assert policy.expired() is None
    now[0] = 60.0
    assert policy.expired() is None  # a key lives for its whole lifetime
    now[0] = 61.0
    assert policy.expired(lambda key: key != "head") == "leaf"
    policy.remove("leaf")
    policy.freed("head")
    assert policy.expired() == "head"
    policy.touch("head")
    assert policy.expired() is None
    now[0] = 115.0
    assert policy.expired() == "other" and policy.victim() == "other"


@pytest.mark.parametrize("lifetime", [0.0, -1.0, float("nan")])
def test_ttl_refuses_a_lifetime_that_is_not_above_0(lifetime: float) -> None:
    with pytest.raises(StoreError, match="write seconds above 0"):
        Ttl(1, lifetime)


# -- Tail-Optimized LRU -----------------------------------------------------------------------------------------------


def tails(policy: TailLru) -> Tier:
    """Fill a tier with a long conversation and then a short one, at a cost of 1 a block."""
    tier = Tier(policy)
    tier.request((0, 1, 1, 1, 1, 1))
    tier.request((2, 3, 3))
    assert not tier.left and len(tier.held) == policy.capacity
    return tier


def test_tail_lru_takes_from_each_conversation_what_it_can_lose_and_then_the_oldest() -> None:
    tier = tails(TailLru(9, threshold=3.0, next_prompt=1.0))
    tier.request((1, 0, 0, 0, 0, 0))
    long, short = chain((0, 1, 1, 1, 1, 1)), chain((2, 3, 3))
    assert tier.left == [long[5], long[4], short[2], short[1], long[3], long[2]]


def test_tail_lru_counts_anew_once_a_conversation_is_used() -> None:
    tier = tails(TailLru(9, threshold=3.0, next_prompt=1.0))
    long, short = chain((0, 1, 1, 1, 1, 1)), chain((2, 3, 3))
    tier.request((1, 0))
    assert tier.left == [long[5], long[4]]
    tier.request((0, 1, 1, 1))  # what is left of the long one may lose two blocks again, after the short one's two
    tier.request((1, 1, 0, 0))
    assert tier.left[2:] == [short[2], short[1], (1, 0)]


@pytest.mark.parametrize("threshold", [0.0, 1e9])
def test_tail_lru_is_lru_where_no_block_is_safe_or_all_are(threshold: float) -> None:
    lru, tail = Tier(make("lru", 9)), Tier(TailLru(9, threshold, 0.0))
    for block in [(0, 1, 1), (1, 0), (0, 1, 2), (2, 2, 2, 2), (1, 0, 1), (0, 0), (2, 2, 1), (1, 1), (0, 1, 1)]:
        lru.request(block)
        tail.request(block)
    assert lru.left == tail.left and lru.left


# -- Belady -----------------------------------------------------------------------------------------------------------


def least_misses(requests: Sequence[Path], capacity: int) -> int:
    """Search for the fewest misses among all orders of eviction that a tier allows."""
    states: dict[frozenset[Path], int] = {frozenset(): 0}
    for block in requests:
        blocks = chain(block)
        for one in blocks:
            following: dict[frozenset[Path], int] = {}
            for held, count in states.items():
                if one in held:
                    options = [(held, count)]
                elif len(held) < capacity:
                    options = [(held | {one}, count + 1)]
                else:
                    parents = {other[:-1] for other in held}
                    leaves = [other for other in held if other not in parents and other not in blocks]
                    options = [(held - {leaf} | {one}, count + 1) for leaf in leaves]
                for state, misses in options:
                    following[state] = min(misses, following.get(state, misses))
            states = following
    return min(states.values())


@given(
    requests=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3).map(tuple), max_size=9),
    capacity=st.integers(3, 5),
)
def test_belady_is_optimal_where_only_leaves_may_leave(requests: list[Path], capacity: int) -> None:
    future = Future([chain(block) for block in requests])
    tier = Tier(Belady(capacity, future))
    misses = 0
    for block in requests:
        future.advance()
        misses += tier.request(block)
    assert misses == least_misses(requests, capacity)


def test_belady_looks_past_a_use_that_was_missed() -> None:
    future = Future([["a"], ["b"], ["a"], ["c"], ["b"], ["a"]])
    policy = Belady(2, future)
    for key in ("a", "b"):
        future.advance()
        policy.admit(key)
    future.advance()  # a is used here, but the replay does not say so: its next use is now the last request
    future.advance()
    assert policy.victim() == "a"


def test_belady_is_no_policy_of_a_tier() -> None:
    assert "belady" not in replacement_names()
