"""SIEVE: one queue, one visited bit a key, and a hand that never moves a key.

Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024. Deviation: a key that may not leave (it has descendants, or is
being read) is passed over, keeps its visited bit, and is looked at again once it is freed and the hand comes by.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, require_resident
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Sieve(Replacement):
    """Walks a hand from the tail of the queue to its head; it clears visited bits and stops at a key without one.

    The queue is cut where the hand is. The keys ahead of it come next; those behind it come in the next round.
    """

    name = "sieve"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._places: dict[Hashable, int] = {}
        self._visited: set[Hashable] = set()
        self._ahead, self._behind = EvictionOrder(), EvictionOrder()
        self._admitted = self._hand = 0

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._places)
        self._admitted += 1
        self._places[key] = self._admitted
        self._ahead.place(key, (self._admitted,))
        if uses > 1:
            self._visited.add(key)

    def touch(self, key: Hashable) -> None:
        require_resident(key, key in self._places)
        self._visited.add(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        key = self._next(evictable)
        if key is None:  # ask once more for those that were refused
            self._ahead.unpark()
            self._behind.unpark()
            key = self._next(evictable)
        return key

    def _next(self, evictable: Evictable) -> Hashable | None:
        for _ in range(3):  # the rest of a round, a round that may only clear bits, and one that finds a clear one
            while (key := self._ahead.first_unparked(evictable)) is not None:
                self._hand = self._places[key]
                if key not in self._visited:
                    return key
                self._visited.remove(key)
                self._move(key, self._behind)
            self._start_round()
        return None

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        if self._places[key] == self._hand and key == next(reversed(self._places)):
            self._start_round()  # the hand falls off the head, so that keys which come now are looked at last
        self._order(key).remove(key)
        del self._places[key]
        self._visited.discard(key)

    def _start_round(self) -> None:
        self._ahead, self._behind, self._hand = self._behind, self._ahead, 0

    def freed(self, key: Hashable) -> None:
        self._move(key, self._ahead if self._places[key] >= self._hand else self._behind)

    def _move(self, key: Hashable, to: EvictionOrder) -> None:
        self._order(key).remove(key)
        to.place(key, (self._places[key],))

    def _order(self, key: Hashable) -> EvictionOrder:
        return self._ahead if key in self._ahead else self._behind

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)
