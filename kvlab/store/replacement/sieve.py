"""SIEVE: one queue, one visited bit a key, and a hand that never moves a key.

Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024. Deviation: a key that may not leave (it has descendants, or is
being read) is passed over and keeps its visited bit.
"""

from __future__ import annotations

from collections.abc import Hashable

from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


class _Node:
    __slots__ = ("key", "newer", "older", "visited")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.visited = False
        self.newer: _Node | None = None
        self.older: _Node | None = None


class Sieve(Replacement):
    """Walks a hand from the tail of the queue to its head; it clears visited bits and stops at a key without one."""

    name = "sieve"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._nodes: dict[Hashable, _Node] = {}
        self._head: _Node | None = None
        self._tail: _Node | None = None
        self._hand: _Node | None = None

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._nodes)
        node = self._nodes[key] = _Node(key)
        node.visited = uses > 1
        node.older = self._head
        if self._head is not None:
            self._head.newer = node
        self._head = node
        if self._tail is None:
            self._tail = node

    def touch(self, key: Hashable) -> None:
        self._nodes[key].visited = True

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        node = self._hand or self._tail
        for _ in range(2 * len(self._nodes)):  # one round may only clear bits, the next finds a clear one
            if node is None:
                return None
            if evictable(node.key):
                if not node.visited:
                    self._hand = node
                    return node.key
                node.visited = False
            node = node.newer or self._tail
        return None

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        node = self._nodes.pop(key)
        if self._hand is node:
            self._hand = node.newer
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._head = node.older
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._tail = node.newer

    def __contains__(self, key: object) -> bool:
        return key in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)
