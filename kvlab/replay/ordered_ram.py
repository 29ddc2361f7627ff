"""``OrderedRam``: the store's RAM tier with a replacement that was made for a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvlab.store.ram.tier import RamEntry, RamTier
from kvlab.store.replacement import Replacement


class OrderedRam(RamTier):
    """Takes the replacement that it is given; keys are those of blocks of a trace."""

    def __init__(self, budget: int, order: Replacement, pinned: Callable[[bytes], bool]) -> None:
        super().__init__(budget, "lru", pinned)
        self._order = order

    def touch(self, key: bytes) -> None:
        """Note a use; the time of day says nothing about a trace."""
        self._entries[key].uses += 1
        self._order.touch(key)

    def take_expired(self) -> Iterator[RamEntry]:
        """Remove the blocks that a replacement with lifetimes says have expired, leaves first."""
        expired = getattr(self._order, "expired", None)
        while expired is not None and (key := expired(self._may_leave)) is not None:
            yield self.remove(key, evicted=True)

    def _may_leave(self, key: object) -> bool:
        return key not in self._below and not self._pinned(key)  # type: ignore[arg-type]
