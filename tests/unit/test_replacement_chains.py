"""Policies that look at chains: their victims are those of plain rewritings of what their docstrings say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.store.replacement import make
from tests.unit.test_replacement_contract import Path, Tier, chain

CAPACITY = 6

blocks_ = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
requests_ = st.lists(blocks_, max_size=40)


class PlainTier:
    """The blocks of requests within a capacity; who leaves is found by looking at all of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.time = capacity, 0
        self.used: dict[Path, int] = {}
        self.gone: list[Path] = []

    def request(self, block: Path) -> None:
        blocks = chain(block)
        there = [one for one in blocks if one in self.used]
        for one in reversed(there):
            self.touched(one)
            self.use(one)
        for one in blocks[len(there) :]:
            while len(self.used) >= self.capacity:
                parents = {other[:-1] for other in self.used}
                leaves = [other for other in self.used if other not in parents and other not in blocks]
                if not leaves:
                    return
                self.evict(min(leaves, key=self.rank))
            self.entered(one)
            self.use(one)

    def use(self, block: Path) -> None:
        self.used[block] = self.time
        self.time += 1

    def evict(self, block: Path) -> None:
        del self.used[block]
        self.gone.append(block)

    def rank(self, block: Path) -> tuple[int, int]:
        raise NotImplementedError

    def touched(self, block: Path) -> None: ...

    def entered(self, block: Path) -> None: ...


class PlainShortest(PlainTier):
    def rank(self, block: Path) -> tuple[int, int]:
        return len(block), self.used[block]


class PlainSuperseded(PlainTier):
    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.left: set[Path] = set()
        self.forks: set[Path] = set()
        self.ghosts: list[Path] = []

    def rank(self, block: Path) -> tuple[int, int]:
        return int(not self.left & set(chain(block))), self.used[block]

    def fork(self, parent: Path) -> None:
        self.forks.add(parent)
        self.left = {one for one in self.left if one[:-1] != parent}

    def touched(self, block: Path) -> None:
        if block in self.left:
            self.fork(block[:-1])

    def entered(self, block: Path) -> None:
        parent = block[:-1]
        came_back = block in self.ghosts
        self.ghosts = [one for one in self.ghosts if one != block]
        if came_back and parent in self.used:
            self.fork(parent)
        if parent in self.used and parent not in self.forks:
            self.left |= {one for one in self.used if one[:-1] == parent}

    def evict(self, block: Path) -> None:
        super().evict(block)
        self.forks.discard(block)
        if block in self.left:
            self.left.remove(block)
            self.ghosts.append(block)
        self.ghosts = self.ghosts[max(0, len(self.ghosts) - len(self.used)) :]


def victims(name: str, requests: list[Path], capacity: int = CAPACITY) -> list[Path]:
    tier = Tier(make(name, capacity))
    for block in requests:
        tier.request(block)
    return tier.left


@pytest.mark.parametrize(("name", "plain"), [("shortest", PlainShortest), ("superseded", PlainSuperseded)])
@given(requests=requests_, capacity=st.integers(1, 9))
def test_policy_evicts_what_a_plain_rewriting_does(
    name: str, plain: type[PlainTier], requests: list[Path], capacity: int
) -> None:
    tier = plain(capacity)
    for block in requests:
        tier.request(block)
    assert victims(name, requests, capacity) == tier.gone


def test_shortest_takes_the_whole_of_the_shortest_chain_before_a_longer_one() -> None:
    assert victims("shortest", [(0, 0, 0), (1, 0), (2,), (2, 0), (2, 0, 0)]) == [(1, 0), (1,)]
    assert victims("shortest", [(0, 0, 0, 0), (1, 0), (2, 0, 0)]) == [(1, 0), (1,), (0, 0, 0, 0)]


EDITED = [(0, 0), (1, 0, 0), (1, 1, 0)]
"""The second prompt of conversation 1 has another second block."""


def test_superseded_takes_the_branch_that_a_newer_request_left_before_older_conversations() -> None:
    assert victims("lru", [*EDITED, (2,)], 7) == [(0, 0)]
    assert victims("superseded", [*EDITED, (2,)], 7) == [(1, 0, 0)]


def test_superseded_takes_no_branch_of_a_block_behind_which_an_older_one_came_back() -> None:
    requests = [*EDITED, (1, 0, 0), (2,)]
    assert victims("superseded", requests, 7) == victims("lru", requests, 7) == [(0, 0)]


def test_superseded_knows_a_conversation_again_that_it_had_evicted() -> None:
    requests = [*EDITED, (2,), (1, 0, 0)]  # of the branch that was left, the last block had gone
    assert victims("superseded", requests, 7) == [(1, 0, 0), (0, 0)]
    gone = [(0,), (2,), (1, 0), (1, 1), (3,)]  # here all of it
    assert victims("superseded", gone, 5) == [(1, 0)]
    assert victims("superseded", [*gone, (1, 0), (4,)], 5) == [(1, 0), (0,), (2,)]
    assert victims("superseded", [*gone, (1, 2), (4,)], 5) == [(1, 0), (0,), (1, 1)], "a new branch is not one back"
