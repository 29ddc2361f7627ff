"""S3-FIFO: a small queue that filters one-hit wonders, a main queue, and a ghost queue of keys lately dropped.

Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023; the constants are those of libCacheSim (small
queue 10% of the capacity, ghost queue 90% of it, two hits to be promoted). Deviation: a key that may not leave (it has
descendants, or is being read) is parked, and is the next to be looked at once it is freed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent

SMALL_SHARE, GHOST_SHARE = 0.1, 0.9
"""Shares of the capacity that the small queue and the ghost queue have."""

PROMOTION_HITS, MAX_HITS = 2, 3


@dataclass(slots=True)
class _Seen:
    size: int
    small: bool
    hits: int = 0


class S3Fifo(Replacement):
    """Promotes and reinserts keys in ``victim``; keys enter and leave in ``admit`` and ``remove`` only."""

    name = "s3fifo"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._seen: dict[Hashable, _Seen] = {}
        self._small: OrderedDict[Hashable, None] = OrderedDict()
        self._main: OrderedDict[Hashable, None] = OrderedDict()
        self._parked: OrderedDict[Hashable, None] = OrderedDict()
        self._ghost: OrderedDict[Hashable, int] = OrderedDict()
        self._main_bytes = self._ghost_bytes = 0
        self._main_capacity = capacity - int(SMALL_SHARE * capacity)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._seen)
        ghost = self._ghost.pop(key, None)
        if ghost is not None:
            self._ghost_bytes -= ghost
        self._seen[key] = seen = _Seen(size, small=ghost is None and uses <= PROMOTION_HITS)
        self._queue(seen)[key] = None
        self._main_bytes += 0 if seen.small else size
        while self._ghost_bytes > int(
            GHOST_SHARE * self.capacity
        ):  # after the lookup above, which must still find the key that comes in
            self._ghost_bytes -= self._ghost.popitem(last=False)[1]

    def touch(self, key: Hashable) -> None:
        seen = self._seen[key]
        seen.hits = min(seen.hits + 1, MAX_HITS)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        found = self._candidate(evictable)
        if found is None and self._parked:
            for key in list(reversed(self._parked)):
                self.freed(key)
            found = self._candidate(evictable)
        return found[0] if found else None

    def freed(self, key: Hashable) -> None:
        if key in self._parked:
            del self._parked[key]
            queue = self._queue(self._seen[key])
            queue[key] = None
            queue.move_to_end(key, last=False)

    def _candidate(self, evictable: Evictable) -> tuple[Hashable] | None:
        if self._main_bytes > self._main_capacity or not self._small:
            return self._from_main(evictable) or self._from_small(evictable)
        return self._from_small(evictable) or self._from_main(evictable)

    def _from_small(self, evictable: Evictable) -> tuple[Hashable] | None:
        while self._small:
            key = next(iter(self._small))
            seen = self._seen[key]
            if not evictable(key):
                del self._small[key]
                self._parked[key] = None
            elif seen.hits < PROMOTION_HITS:
                return (key,)
            else:
                del self._small[key]
                self._main[key] = None
                self._main_bytes += seen.size
                seen.small, seen.hits = False, 0
        return None

    def _from_main(self, evictable: Evictable) -> tuple[Hashable] | None:
        while self._main:
            key = next(iter(self._main))
            seen = self._seen[key]
            if not evictable(key):
                del self._main[key]
                self._parked[key] = None
            elif seen.hits == 0:
                return (key,)
            else:
                seen.hits -= 1
                self._main.move_to_end(key)
        return None

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        seen = self._seen.pop(key)
        self._parked.pop(key, None)
        self._queue(seen).pop(key, None)
        if not seen.small:
            self._main_bytes -= seen.size
        elif evicted:
            self._ghost[key] = seen.size
            self._ghost_bytes += seen.size

    def _queue(self, seen: _Seen) -> OrderedDict[Hashable, None]:
        return self._small if seen.small else self._main

    def __contains__(self, key: object) -> bool:
        return key in self._seen

    def __len__(self) -> int:
        return len(self._seen)
