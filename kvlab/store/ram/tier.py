"""The RAM tier: payloads as they were given, and the index of children that lets a match end at any token."""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from kvlab.store import keys as k
from kvlab.store.blocks import BLOCK, CHECKPOINT, Block, Child
from kvlab.store.replacement import make
from kvlab.tiers import RAM


@dataclass(slots=True, eq=False)
class RamEntry:
    """Holds a resident block. ``dirty``: in no tier below yet. ``uses`` counts the put and every read."""

    block: Block
    nbytes: int
    dirty: bool
    used: float
    uses: int

    def as_used(self) -> Block:
        """Return the block with its latest use and its number of uses."""
        return replace(self.block, used=self.used, uses=self.uses)


class RamTier:
    """Keeps blocks by key within ``budget`` bytes. The caller holds the lock, and evicts before it adds.

    A block with children here may not leave before them; neither may one that ``pinned`` says is being read.
    """

    name = RAM.name

    def __init__(self, budget: int, replacement: str, pinned: Callable[[bytes], bool]) -> None:
        self.budget = budget
        self.held = 0
        self.dirty: OrderedDict[bytes, RamEntry] = OrderedDict()  # oldest first, so parents before their children
        self.dirty_bytes = 0
        self._entries: dict[bytes, RamEntry] = {}
        self._order = make(replacement, budget)
        self._pinned = pinned
        self._siblings: dict[bytes, list[tuple[bytes, bytes]]] = {}  # parent -> sorted (tokens, key)
        self._checkpoints: dict[bytes, set[bytes]] = {}
        self._below: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[RamEntry]:
        return iter(self._entries.values())

    def get(self, key: bytes) -> RamEntry | None:
        return self._entries.get(key)

    def has_children(self, key: bytes) -> bool:
        return self._below[key] > 0 if key in self._below else False

    def add(self, block: Block, *, dirty: bool) -> RamEntry:
        """Add a block that is not resident."""
        nbytes = block.nbytes
        entry = self._entries[block.key] = RamEntry(block, nbytes, dirty, block.used, block.uses)
        self.held += nbytes
        self._order.link(block.key, block.parent, block.start)
        self._order.admit(block.key, max(nbytes, 1), block.cost, block.uses)
        self._below[block.parent] += 1
        if block.kind == CHECKPOINT:
            self._checkpoints.setdefault(block.parent, set()).add(block.key)
        else:
            insort(self._siblings.setdefault(block.parent, []), (k.sortable(block.tokens), block.key))
        if dirty:
            self.dirty[block.key] = entry
            self.dirty_bytes += nbytes
        return entry

    def clean(self, key: bytes) -> None:
        """Note that a tier below has the block now."""
        entry = self.dirty.pop(key, None)
        if entry is not None:
            entry.dirty = False
            self.dirty_bytes -= entry.nbytes

    def remove(self, key: bytes, *, evicted: bool) -> RamEntry:
        """Remove a block. Raises ``KeyError`` when it is not resident."""
        entry = self._entries.pop(key)
        self.clean(key)
        self.held -= entry.nbytes
        self._order.remove(key, evicted)
        parent = entry.block.parent
        self._below[parent] -= 1
        if not self._below[parent]:
            del self._below[parent]
            if parent in self._order:
                self._order.freed(parent)
        if entry.block.kind == CHECKPOINT:
            self._checkpoints[parent].discard(key)
            if not self._checkpoints[parent]:
                del self._checkpoints[parent]
        else:
            siblings = self._siblings[parent]
            del siblings[bisect_left(siblings, (k.sortable(entry.block.tokens), key))]
            if not siblings:
                del self._siblings[parent]
        return entry

    def touch(self, key: bytes) -> None:
        """Note a use of a resident block."""
        entry = self._entries[key]
        entry.uses += 1
        entry.used = time.time()
        self._order.touch(key)

    def victim(self, must_stay: Callable[[RamEntry], bool] = lambda entry: False) -> RamEntry | None:
        """Return the block to evict next, or None when all must stay, as those do that ``must_stay`` accepts."""

        def may_leave(key: object) -> bool:
            return isinstance(key, bytes) and self._may_leave(key) and not must_stay(self._entries[key])

        key = self._order.victim(may_leave)
        return self._entries[key] if isinstance(key, bytes) else None

    def expired(self) -> RamEntry | None:
        """Return a block whose time is over by the replacement policy, and that a tier below has where there is one."""

        def may_leave(key: object) -> bool:
            return isinstance(key, bytes) and self._may_leave(key) and not self._entries[key].dirty

        key = self._order.expired(may_leave)
        return self._entries[key] if isinstance(key, bytes) else None

    def expect(self, block: Block) -> None:
        """Note that a block is about to be added, before space is made for it."""
        if block.key not in self._entries:
            self._order.expect(block.key, max(block.nbytes, 1))

    def unpinned(self, key: bytes) -> None:
        """Note that no pin holds a block any more: it may have been passed over as a victim."""
        if key in self._entries and key not in self._below:
            self._order.freed(key)

    def _may_leave(self, key: object) -> bool:
        return isinstance(key, bytes) and key not in self._below and not self._pinned(key)

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        """Return the child that shares the longest prefix with ``tokens``: a neighbour in token order."""
        siblings = self._siblings.get(parent)
        if not siblings:
            return None
        at = bisect_left(siblings, (k.sortable(tokens), b""))
        best: Child | None = None
        shared = -1
        for _, key in siblings[max(at - 1, 0) : at + 1]:
            child = self._entries[key].block
            n = k.common(child.tokens, tokens)
            if n > shared:
                best, shared = Child(key, child.tokens), n
        return best

    def covered(self, parent: bytes, tokens: bytes) -> list[bytes]:
        """Return the tails under ``parent`` that ``tokens`` begins with: a longer block makes them useless."""
        siblings = self._siblings.get(parent, [])
        at = bisect_left(siblings, (k.sortable(tokens), b""))
        found: list[bytes] = []
        while at > 0:
            at -= 1
            tail = self._entries[siblings[at][1]].block
            if not tokens.startswith(tail.tokens):
                break
            found.append(tail.key)
        return found

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        return {key for key in keys if key in self._entries}

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        return {parent for parent in parents if parent in self._checkpoints}

    def problems(self) -> list[str]:
        """Return what contradicts itself in this tier, one line each."""
        found: list[str] = []
        entries = self._entries.values()
        if self.held != sum(entry.nbytes for entry in entries):
            found.append("RAM: the byte count is off")
        if self.dirty_bytes != sum(entry.nbytes for entry in entries if entry.dirty):
            found.append("RAM: the count of unwritten bytes is off")
        if set(self.dirty) != {key for key, entry in self._entries.items() if entry.dirty}:
            found.append("RAM: the list of unwritten blocks is off")
        if self._below != Counter(entry.block.parent for entry in entries):
            found.append("RAM: the counts of children are off")
        if len(self._order) != len(self._entries) or any(key not in self._order for key in self._entries):
            found.append("RAM: the replacement order holds other blocks than the tier")
        if sum(map(len, self._siblings.values())) != sum(entry.block.kind == BLOCK for entry in entries):
            found.append("RAM: the index of children is off")
        for entry in entries:
            block = entry.block
            name = k.checkpoint_key if block.kind == CHECKPOINT else k.chain
            if name(block.parent, block.tokens) != block.key:
                found.append(f"RAM: {block.key.hex()[:16]} is not the hash of its parent and tokens")
        return found
