"""Belady's MIN: the key whose next use lies farthest in the future leaves first.

Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966. It needs the
future, so it is for replays only, and is no value of ``replace=``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable

from kvlab.store.eviction_order import EvictionOrder
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Future:
    """Knows when each key of a trace is used.

    The replay calls ``advance`` before each request, the first included.

    Args:
        requests: the keys that each request uses, in the order of the requests.
    """

    def __init__(self, requests: Iterable[Iterable[Hashable]]) -> None:
        self.now = -1
        self._times: dict[Hashable, list[int]] = {}
        for at, keys in enumerate(requests):
            for key in keys:
                self._times.setdefault(key, []).append(at)

    def advance(self) -> None:
        """Go on to the next request."""
        self.now += 1

    def next_use(self, key: Hashable, since: int) -> float:
        """Return the number of the first request from ``since`` on that uses a key; infinity without one."""
        times = self._times.get(key, [])
        at = bisect_left(times, since)
        return times[at] if at < len(times) else math.inf


class Belady(Replacement):
    """Evicts the key whose next use is the farthest.

    Optimal, in the number of misses, among policies that admit every key that misses, where all sizes are equal and
    ``evictable`` refuses nothing. It stays so where ``evictable`` refuses keys that have resident descendants, and the
    keys of the request in progress, if each request uses a chain from a root on: a parent is then used no later than
    its children, so that one of the keys whose next use is the farthest is a leaf. No claim is made for sizes that
    differ (the optimum is then NP-hard to find), for misses that cost differently, and against policies that do not
    admit every key, which may have fewer misses.

    Args:
        future: the uses of the trace that is replayed.
    """

    def __init__(self, capacity: int, future: Future) -> None:
        super().__init__(capacity)
        self._future = future
        self._order = EvictionOrder()
        self._next: dict[Hashable, float] = {}
        self._due: dict[float, list[Hashable]] = {}
        self._passed = 0

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._next)
        self._place(key, self._future.now + 1)

    def touch(self, key: Hashable) -> None:
        del self._next[key]
        self._place(key, self._future.now + 1)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        self._pass_missed_uses()
        return self._order.first(evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        del self._next[key]
        self._order.remove(key)

    def freed(self, key: Hashable) -> None:
        self._order.freed(key)

    def _place(self, key: Hashable, since: int) -> None:
        self._next[key] = use = self._future.next_use(key, since)
        self._order.place(key, (-use,))
        if use < math.inf:
            self._due.setdefault(use, []).append(key)

    def _pass_missed_uses(self) -> None:
        """Look further ahead for keys that are resident and were not used when their use came."""
        for use in range(self._passed, self._future.now):
            for key in self._due.pop(use, ()):
                if self._next.get(key) == use:
                    self._place(key, self._future.now)
        self._passed = max(self._passed, self._future.now)

    def __contains__(self, key: object) -> bool:
        return key in self._next

    def __len__(self) -> int:
        return len(self._next)
