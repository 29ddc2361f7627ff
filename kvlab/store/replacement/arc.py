"""ARC, the adaptive replacement cache: keys used once and keys used again, each with a list of what left it lately.

Megiddo & Modha, "ARC: A self-tuning, low overhead replacement cache", FAST 2003: T1 and B1 are ``once`` and its ghosts,
T2 and B2 ``again`` and its ghosts, p is the target of T1. Deviations: all is counted in bytes, so that one block moves
p by its size times the paper's step, which is the ratio of the ghost lists and at least 1. Without ``expect`` p
is adapted when the key is admitted, one eviction later than in the paper.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, first_of
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class _Segment:
    """Resident keys by last use, the keys that were evicted from it, oldest first, and the bytes of both."""

    def __init__(self) -> None:
        self.order = EvictionOrder()
        self.ghosts: OrderedDict[Hashable, int] = OrderedDict()
        self.nbytes = self.ghost_bytes = 0

    def remember(self, key: Hashable, size: int) -> None:
        self.ghosts[key] = size
        self.ghost_bytes += size

    def forget(self, key: Hashable) -> bool:
        size = self.ghosts.pop(key, None)
        self.ghost_bytes -= size or 0
        return size is not None

    def forget_oldest(self) -> None:
        self.ghost_bytes -= self.ghosts.popitem(last=False)[1]


class Arc(Replacement):
    """Evicts from ``once`` while that is larger than its target, else from ``again``; the other where none may leave.

    A miss on a ghost of ``once`` raises the target, one on a ghost of ``again`` lowers it. ``once`` with its ghosts has
    at most the capacity, all lists together twice that.
    """

    name = "arc"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._sizes: dict[Hashable, int] = {}
        self._once, self._again = _Segment(), _Segment()
        self._target = 0.0
        self._expected: tuple[Hashable, ...] = ()

    def expect(self, key: Hashable, size: int = 1) -> None:
        """Adapt to an absent key that is about to be admitted, before space is made for it."""
        self._expected = (key,)
        once, again = self._once, self._again
        if key in once.ghosts:
            step = size * max(1.0, again.ghost_bytes / once.ghost_bytes)
            self._target = min(float(self.capacity), self._target + step)
        elif key in again.ghosts:
            step = size * max(1.0, once.ghost_bytes / again.ghost_bytes)
            self._target = max(0.0, self._target - step)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._sizes)
        if self._expected != (key,):
            self.expect(key, size)
        self._expected = ()
        once, again = self._once, self._again
        is_known = once.forget(key) or again.forget(key) or uses > 1
        segment = again if is_known else once
        self._sizes[key] = max(size, 1)
        segment.order.place(key)
        segment.nbytes += self._sizes[key]
        while once.ghosts and once.nbytes + once.ghost_bytes > self.capacity:
            once.forget_oldest()
        while again.ghosts and self._listed_bytes() > 2 * self.capacity:
            again.forget_oldest()

    def touch(self, key: Hashable) -> None:
        size = self._sizes[key]
        if key in self._once.order:
            self._once.order.remove(key)
            self._once.nbytes -= size
            self._again.nbytes += size
        self._again.order.place(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        excess = self._once.nbytes - self._target
        is_due = any(key in self._again.ghosts for key in self._expected)
        segments = (self._once, self._again) if excess > 0 or (excess == 0 and is_due) else (self._again, self._once)
        return first_of((segment.order for segment in segments), evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        size = self._sizes.pop(key)
        segment = self._once if key in self._once.order else self._again
        segment.order.remove(key)
        segment.nbytes -= size
        if evicted:
            segment.remember(key, size)

    def freed(self, key: Hashable) -> None:
        self._once.order.freed(key)
        self._again.order.freed(key)

    def _listed_bytes(self) -> int:
        return sum(segment.nbytes + segment.ghost_bytes for segment in (self._once, self._again))

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)
