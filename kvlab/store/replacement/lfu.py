"""Least frequently used leaves first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Lfu(Replacement):
    """Counts uses while a key is resident; the least recently used of the least used leaves.

    One queue a frequency, so that each call but ``victim`` is O(1).
    """

    name = "lfu"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._uses: dict[Hashable, int] = {}
        self._queues: dict[int, OrderedDict[Hashable, None]] = {}

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._uses)
        self._uses[key] = uses
        self._queues.setdefault(uses, OrderedDict())[key] = None

    def touch(self, key: Hashable) -> None:
        uses = self._uses[key]
        self._leave_queue(key, uses)
        self._uses[key] = uses + 1
        self._queues.setdefault(uses + 1, OrderedDict())[key] = None

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        for uses in sorted(self._queues):
            for key in self._queues[uses]:
                if evictable(key):
                    return key
        return None

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        self._leave_queue(key, self._uses.pop(key))

    def _leave_queue(self, key: Hashable, uses: int) -> None:
        queue = self._queues[uses]
        del queue[key]
        if not queue:
            del self._queues[uses]

    def __contains__(self, key: object) -> bool:
        return key in self._uses

    def __len__(self) -> int:
        return len(self._uses)
