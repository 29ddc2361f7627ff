"""Shortest first: the end of the shortest chain leaves first; of equally long chains, the least recently used.

The longer a prompt, the more it costs to compute again, and the more each of its last tokens costs. We know no system
that goes by length alone. Mooncake's LengthAwareCache (Qin et al., FAST 2025) goes the other way: it is LFU that
prefers to evict what stands late in a prompt. There is no ageing: a long chain that nobody continues stays until every
other chain is as short. ``cost`` weighs the position, too, and ages.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, require_resident
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class Shortest(Replacement):
    """Evicts the key with the fewest tokens before it.

    The owner lets keys leave that nothing stands behind, so that key is the end of a chain, and the rest of the chain,
    which is shorter now, leaves next. Keys that were not linked are chains of their own: among them it is LRU.
    """

    name = "shortest"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._order = EvictionOrder()
        self._starts: dict[Hashable, int] = {}
        self._linked: tuple[Hashable, int] = (None, 0)

    def link(self, key: Hashable, parent: Hashable, start: int) -> None:
        self._linked = (key, start)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._starts)
        linked, start = self._linked
        self._starts[key] = start if linked == key else 0
        self.touch(key)

    def touch(self, key: Hashable) -> None:
        require_resident(key, key in self._starts)
        self._order.place(key, (self._starts[key],))

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return self._order.first(evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        del self._starts[key]
        self._order.remove(key)

    def freed(self, key: Hashable) -> None:
        self._order.freed(key)

    def __contains__(self, key: object) -> bool:
        return key in self._starts

    def __len__(self) -> int:
        return len(self._starts)
