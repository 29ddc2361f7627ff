"""LIRS: keys whose last two uses lie close together stay; of the others, only a small share is resident.

Jiang & Zhang, "LIRS: An efficient low inter-reference recency set replacement policy", SIGMETRICS 2002: S is ``stack``,
Q is ``queue``; 1% of the capacity is for resident keys of high recency (HIR), the rest for those of low recency (LIR).
Deviations: keys that left are remembered in S only while S has at most twice the capacity, those that left first go
first; a LIR key is evicted where no HIR key may leave, and is then forgotten.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from kvlab.store.eviction_order import EvictionOrder, first_of
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent

HIR_SHARE, MAX_STACK_SHARE = 0.01, 2
"""Share of the capacity that is kept for HIR keys, and multiple of it that the stack may have, ghosts included."""


@dataclass(slots=True)
class _Known:
    size: int
    low: bool = False
    resident: bool = True


class Lirs(Replacement):
    """Evicts the first key of the queue of resident HIR keys.

    A HIR key that is used while it is in the stack becomes LIR, and the LIR key at the bottom of the stack becomes HIR
    for it. The bottom of the stack is always LIR.
    """

    name = "lirs"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._known: dict[Hashable, _Known] = {}
        self._stack: OrderedDict[Hashable, None] = OrderedDict()  # the top is the last one
        self._queue = EvictionOrder()
        self._low = EvictionOrder()
        self._ghosts: OrderedDict[Hashable, None] = OrderedDict()
        self._low_bytes = self._stack_bytes = 0
        self._low_capacity = capacity - max(1, int(HIR_SHARE * capacity))

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self)
        is_ghost = key in self._ghosts
        if is_ghost:
            self._forget_ghost(key)
        known = self._known[key] = _Known(max(size, 1))
        if is_ghost or self._low_bytes + known.size <= self._low_capacity:
            self._make_low(key, known)
        else:
            self._to_top(key, known)
            self._queue.place(key)
        self._trim()

    def touch(self, key: Hashable) -> None:
        known = self._known[key]
        if not known.resident:
            raise KeyError(f"{key!r} is not resident")
        if known.low:
            self._to_top(key, known)
            self._low.place(key)
        elif key in self._stack:
            self._queue.remove(key)
            self._make_low(key, known)
        else:
            self._to_top(key, known)
            self._queue.place(key)
        self._trim()

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return first_of((self._queue, self._low), evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        known = self._known[key]
        if not known.resident:
            raise KeyError(f"{key!r} is not resident")
        if known.low:
            self._low.remove(key)
            self._low_bytes -= known.size
        else:
            self._queue.remove(key)
        if evicted and not known.low and key in self._stack:
            known.resident = False
            self._ghosts[key] = None
        else:
            self._leave_stack(key, known)
            del self._known[key]
            self._prune()

    def freed(self, key: Hashable) -> None:
        self._queue.freed(key)
        self._low.freed(key)

    def _make_low(self, key: Hashable, known: _Known) -> None:
        known.low = True
        self._to_top(key, known)
        self._low.place(key)
        self._low_bytes += known.size
        while self._low_bytes > self._low_capacity:
            bottom = self._low.oldest
            demoted = self._known[bottom]
            demoted.low = False
            self._low.remove(bottom)
            self._low_bytes -= demoted.size
            self._leave_stack(bottom, demoted)
            self._queue.place(bottom)
        self._prune()

    def _to_top(self, key: Hashable, known: _Known) -> None:
        self._leave_stack(key, known)
        self._stack[key] = None
        self._stack_bytes += known.size

    def _leave_stack(self, key: Hashable, known: _Known) -> None:
        if key in self._stack:
            del self._stack[key]
            self._stack_bytes -= known.size

    def _trim(self) -> None:
        self._prune()
        while self._ghosts and self._stack_bytes > MAX_STACK_SHARE * self.capacity:
            self._forget_ghost(next(iter(self._ghosts)))

    def _prune(self) -> None:
        """Drop keys from the bottom of the stack until a LIR key is there."""
        while self._stack:
            bottom = next(iter(self._stack))
            known = self._known[bottom]
            if known.low:
                return
            if known.resident:
                self._leave_stack(bottom, known)
            else:
                self._forget_ghost(bottom)

    def _forget_ghost(self, key: Hashable) -> None:
        del self._ghosts[key]
        self._leave_stack(key, self._known.pop(key))

    def __contains__(self, key: object) -> bool:
        return key in self._queue or key in self._low

    def __len__(self) -> int:
        return len(self._queue) + len(self._low)
