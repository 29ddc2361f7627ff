"""GreedyDual-Size-Frequency: uses over size, aged by what left before.

Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency caching policy", HP Labs 1998.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from dataclasses import dataclass

from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


@dataclass(slots=True)
class _Held:
    size: int
    cost: float
    uses: int
    rank: tuple[float, int]


class Gdsf(Replacement):
    """Evicts the lowest priority = age + uses * worth; the age becomes the priority of the key that left last.

    Keys of equal priority leave by last use.

    Stale entries stay in the heap, are skipped, and are removed when they outnumber the live ones. Keys that may not
    leave are parked outside of the heap until they are freed or used, or until no other key is left.
    """

    name = "gdsf"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._held: dict[Hashable, _Held] = {}
        self._heap: list[tuple[tuple[float, int], Hashable]] = []
        self._parked: set[Hashable] = set()
        self._age = 0.0
        self._clock = 0

    def worth(self, size: int, cost: float) -> float:
        """Return what one use of a key is worth: 1 / size."""
        return 1.0 / max(size, 1)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._held)
        self._held[key] = held = _Held(size, cost, uses, (0.0, 0))
        self._place(key, held)

    def touch(self, key: Hashable) -> None:
        held = self._held[key]
        held.uses += 1
        self._place(key, held)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        while self._heap:
            rank, key = self._heap[0]
            held = self._held.get(key)
            if held is None or held.rank != rank or key in self._parked:
                heapq.heappop(self._heap)
            elif evictable(key):
                return key
            else:
                self._parked.add(key)
        self._heap = sorted((held.rank, key) for key, held in self._held.items())
        self._parked.clear()
        return next((key for _, key in self._heap if evictable(key)), None)

    def freed(self, key: Hashable) -> None:
        if key in self._parked:
            self._parked.remove(key)
            heapq.heappush(self._heap, (self._held[key].rank, key))

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        held = self._held.pop(key)
        self._parked.discard(key)
        if evicted:
            self._age = max(self._age, held.rank[0])

    def _place(self, key: Hashable, held: _Held) -> None:
        self._clock += 1  # unique, so that keys themselves are never compared
        held.rank = (self._age + held.uses * self.worth(held.size, held.cost), self._clock)
        self._parked.discard(key)
        heapq.heappush(self._heap, (held.rank, key))
        if len(self._heap) > 4 * len(self._held) + 64:
            self._heap = [(one.rank, name) for name, one in self._held.items() if name not in self._parked]
            heapq.heapify(self._heap)

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)
