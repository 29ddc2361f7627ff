"""Superseded first: the branch of a conversation that a newer request has left leaves first, then as LRU.

A request that goes on otherwise than an earlier one behind the same block supersedes what stands there: an edited head,
a retried answer, a partial last block that is full in the next turn. A policy does not know conversations, and several
may begin alike. So a block behind which an older branch came back, from the tier or after it had been evicted, is a
fork: what stands behind it are conversations of their own, which supersede none of each other. Keys without a resident
parent, such as the first blocks of prompts, are conversations of their own from the start.

Limits: until an older conversation comes back for the first time, those that begin alike are taken for one. What is
known of forks ends with the block, and with the process. An SSD folder links its new blocks when it needs space, so an
older branch that was used meanwhile counts as left until its next use.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from kvlab.store.eviction_order import EvictionOrder
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent


@dataclass(slots=True)
class _Node:
    """A resident key. ``is_left``: a sibling is newer; ``is_superseded``: it, or what it stands behind, is left."""

    parent: Hashable
    used: int = 0
    is_left: bool = False
    is_superseded: bool = False
    is_fork: bool = False


@dataclass(slots=True)
class _Branches:
    """The resident children of a key: those that go on, and those that a newer one has left behind."""

    open: dict[Hashable, None]
    left: dict[Hashable, None]


class Superseded(Replacement):
    """Evicts the least recently used of the superseded keys, then of all. Keys that were not linked leave as in LRU."""

    name = "superseded"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._nodes: dict[Hashable, _Node] = {}
        self._branches: dict[Hashable, _Branches] = {}
        self._ghosts: OrderedDict[Hashable, None] = OrderedDict()
        self._linked: tuple[Hashable, Hashable] = (None, None)
        self._order = EvictionOrder()
        self._time = 0

    def link(self, key: Hashable, parent: Hashable, start: int) -> None:
        self._linked = (key, parent)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._nodes)
        linked, parent = self._linked
        node = self._nodes[key] = _Node(parent if linked == key else None)
        if node.parent is not None:
            self._join(key, node)
        self._use(key, node)

    def touch(self, key: Hashable) -> None:
        node = self._nodes[key]
        if node.is_left:
            self._fork(node.parent)
        self._use(key, node)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return self._order.first(evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        node = self._nodes.pop(key)
        self._order.remove(key)
        branches = self._branches.get(node.parent)
        if branches is not None:
            (branches.left if node.is_left else branches.open).pop(key, None)
            if not branches.open and not branches.left:
                del self._branches[node.parent]
        if evicted and node.is_left:
            self._ghosts[key] = None
        while len(self._ghosts) > len(self._nodes):
            self._ghosts.popitem(last=False)

    def freed(self, key: Hashable) -> None:
        self._order.freed(key)

    def _join(self, key: Hashable, node: _Node) -> None:
        """Add a key to the children of its parent; unless that is a fork, they are superseded."""
        came_back = key in self._ghosts
        self._ghosts.pop(key, None)
        branches = self._branches.setdefault(node.parent, _Branches({}, {}))
        parent = self._nodes.get(node.parent)
        if parent is not None:
            if came_back:
                self._fork(node.parent)
            if not parent.is_fork:
                for other in branches.open:
                    self._nodes[other].is_left = True
                    self._supersede(other)
                branches.left |= branches.open
                branches.open.clear()
            if parent.is_superseded:
                self._supersede(key)
        branches.open[key] = None

    def _fork(self, parent: Hashable) -> None:
        """Take the children of a key for conversations of their own from now on."""
        known, branches = self._nodes.get(parent), self._branches.get(parent)
        if known is not None:
            known.is_fork = True
        if branches is not None:
            opened, branches.left = branches.left, {}
            branches.open |= opened
            for key in opened:
                self._nodes[key].is_left = False
                if known is None or not known.is_superseded:
                    self._restore(key)

    def _supersede(self, top: Hashable) -> None:
        """Mark a key and all that stands behind it."""
        pending = [top]
        while pending:
            key = pending.pop()
            node = self._nodes[key]
            if not node.is_superseded:
                node.is_superseded = True
                self._place(key, node)
                if key in self._branches:
                    pending += [*self._branches[key].open, *self._branches[key].left]

    def _restore(self, top: Hashable) -> None:
        """Take the mark from a key and from what stands behind it, up to branches that were left themselves."""
        pending = [top]
        while pending:
            key = pending.pop()
            node = self._nodes[key]
            node.is_superseded = False
            self._place(key, node)
            if key in self._branches:
                pending += self._branches[key].open

    def _use(self, key: Hashable, node: _Node) -> None:
        self._time += 1
        node.used = self._time
        self._place(key, node)

    def _place(self, key: Hashable, node: _Node) -> None:
        self._order.place(key, (0.0 if node.is_superseded else 1.0, float(node.used)))

    def __contains__(self, key: object) -> bool:
        return key in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)
