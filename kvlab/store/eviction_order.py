"""An order of keys by rank that finds the first key which may leave, for replacement policies."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator

Rank = tuple[float, ...]

MAX_STALE_SHARE, MIN_HEAP_ENTRIES = 4, 64
"""The heap is made anew when it holds so many entries a key, and so many besides."""


class EvictionOrder:
    """Orders keys by rank, the lowest first; keys of equal rank go by when they were placed.

    Without ranks it is a queue. A key that ``evictable`` refuses is parked: ``first`` does not ask for it again until
    it is placed anew or freed, or until no other key is left. So a chain of keys that have descendants is asked for
    once, not at every eviction. ``place``, ``remove`` and ``freed`` take O(log n); so does ``first``, amortized, unless
    all keys are refused.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[Rank, int]] = OrderedDict()
        self._heap: list[tuple[Rank, int, Hashable]] = []
        self._parked: set[Hashable] = set()
        self._placed = 0

    def place(self, key: Hashable, rank: Rank = ()) -> None:
        """Add a key, or move it, behind the keys of the same rank."""
        self._placed += 1  # unique, so that keys themselves are never compared
        self._entries[key] = (rank, self._placed)
        self._entries.move_to_end(key)
        self._parked.discard(key)
        heapq.heappush(self._heap, (rank, self._placed, key))
        if len(self._heap) > MAX_STALE_SHARE * len(self._entries) + MIN_HEAP_ENTRIES:
            self._heap = [(*entry, name) for name, entry in self._entries.items() if name not in self._parked]
            heapq.heapify(self._heap)

    def remove(self, key: Hashable) -> None:
        """Forget a key. Raises ``KeyError`` when it is absent."""
        del self._entries[key]
        self._parked.discard(key)

    def freed(self, key: Hashable) -> None:
        """Return a key to its place, where it was parked."""
        if key in self._parked:
            self._parked.remove(key)
            rank, placed = self._entries[key]
            heapq.heappush(self._heap, (rank, placed, key))

    def first(self, evictable: Callable[[Hashable], bool]) -> Hashable | None:
        """Return the first key that ``evictable`` accepts, or None."""
        return first_of((self,), evictable)

    def first_unparked(self, evictable: Callable[[Hashable], bool]) -> Hashable | None:
        """Return the first key that is not parked and that ``evictable`` accepts, or None; park those it refuses."""
        while self._heap:
            rank, placed, key = self._heap[0]
            if key in self._parked or self._entries.get(key) != (rank, placed):
                heapq.heappop(self._heap)
            elif evictable(key):
                return key
            else:
                self._parked.add(key)
        return None

    def unpark(self) -> None:
        """Return all parked keys to their places."""
        if self._parked:
            self._parked.clear()
            self._heap = sorted((*entry, name) for name, entry in self._entries.items())

    @property
    def oldest(self) -> Hashable | None:
        """The key that was placed the longest ago, whether it may leave or not."""
        return next(iter(self._entries), None)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._entries)

    def __reversed__(self) -> Iterator[Hashable]:
        return reversed(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)


def first_of(orders: Iterable[EvictionOrder], evictable: Callable[[Hashable], bool]) -> Hashable | None:
    """Return the first key that ``evictable`` accepts of the first order that has one, or None.

    Parked keys are asked for again only when no order has another key.
    """
    orders = list(orders)
    for _ in range(2):
        for order in orders:
            key = order.first_unparked(evictable)
            if key is not None:
                return key
        for order in orders:
            order.unpark()
    return None


def require_resident(key: Hashable, resident: bool) -> None:
    """Raise ``KeyError`` when a key that should be resident is not."""
    if not resident:
        raise KeyError(f"{key!r} is not resident")
