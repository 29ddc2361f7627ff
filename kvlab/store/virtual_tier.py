"""``VirtualTier``: the keys that a tier would hold under another replacement policy, and the hits it would have."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

from kvlab.store.replacement.base import Replacement


class VirtualTier:
    """Takes the requests of a tier, holds keys without payloads, and evicts by an order of its own.

    A key stays while one is held that was admitted behind it, and what a request uses stays while it is taken in.

    Args:
        capacity: in the unit of sizes.
        order: says what leaves.

    Attributes:
        hits: the size of all keys that were found so far.
    """

    def __init__(self, capacity: int, order: Replacement) -> None:
        self.hits = 0
        self._capacity, self._order, self._held = capacity, order, 0
        self._sizes: dict[Hashable, int] = {}
        self._parents: dict[Hashable, Hashable] = {}
        self._children: dict[Hashable, int] = {}
        self._forgotten: set[Hashable] = set()
        self._kept: Collection[Hashable] = ()

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def mean_size(self) -> float:
        """The mean size of the keys that are held; 1 where there are none."""
        return self._held / len(self._sizes) if self._sizes else 1.0

    def use(self, chain: Sequence[Hashable], sizes: Mapping[Hashable, int], root: Hashable = None) -> list[Hashable]:
        """Take in a request for a chain of keys, parents first; return the keys that left, in their order.

        Args:
            sizes: the size of each key.
            root: what the first key stands behind, for an order that looks at chains.
        """
        found = self._found(chain)
        self.hits += sum(self._sizes[key] for key in chain[:found])
        held = found
        while held < len(chain) and chain[held] in self._sizes:  # forgotten keys, or behind one
            held += 1
        self._forgotten.difference_update(chain[found:held])
        for key in reversed(chain[:held]):
            self._order.touch(key)
        left: list[Hashable] = []
        kept = set(chain)
        for place in range(held, len(chain)):
            key, size = chain[place], sizes.get(chain[place], 1)
            if key in self._sizes:  # a request that was cut in two left its end without a head
                self._order.touch(key)
                continue
            while self._held + size > self._capacity and (victim := self.evict(kept)) is not None:
                left.append(victim)
            if self._held + size > self._capacity:
                break
            self._admit(key, chain[place - 1] if place else root, place, size)
        return left

    def evict(self, kept: Collection[Hashable] = ()) -> Hashable | None:
        """Evict the key that leaves next and is not among ``kept``, and return it; None where there is none."""
        self._kept = kept
        key = self._order.victim(self._may_leave)
        if key is not None:
            self._remove(key)
        return key

    def forget(self, key: Hashable) -> None:
        """Count no hit on a key that its owner has dropped, nor on those behind it, until it is used again."""
        if key in self._sizes:
            self._forgotten.add(key)

    def _found(self, chain: Sequence[Hashable]) -> int:
        for place, key in enumerate(chain):
            if key not in self._sizes or key in self._forgotten:
                return place
        return len(chain)

    def _admit(self, key: Hashable, parent: Hashable, place: int, size: int) -> None:
        self._order.link(key, parent, place)
        self._order.admit(key, size)
        self._sizes[key] = size
        self._held += size
        if parent in self._sizes:
            self._parents[key] = parent
            self._children[parent] = self._children.get(parent, 0) + 1

    def _remove(self, key: Hashable) -> None:
        self._order.remove(key)
        self._held -= self._sizes.pop(key)
        self._forgotten.discard(key)
        parent = self._parents.pop(key, None)
        if parent is None:
            return
        self._children[parent] -= 1
        if not self._children[parent]:
            del self._children[parent]
            self._order.freed(parent)

    def _may_leave(self, key: Hashable) -> bool:
        return key not in self._children and key not in self._kept
