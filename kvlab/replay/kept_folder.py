"""``KeptFolder``: an SSD folder without a disk: the store's own order of leaving, in memory that outlives the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kvlab.replay.ordered_ram import OrderedRam
from kvlab.store.blocks import Block, Child
from kvlab.store.errors import TierMiss
from kvlab.store.protocols import IsPinned, OnDropped
from kvlab.store.ram.tier import RamEntry
from kvlab.store.read_buffers import ReadBuffer
from kvlab.store.replacement import Replacement, make
from kvlab.tiers import SSD


class KeptFolder:
    """Stands for a folder of ``budget`` bytes: a tier below RAM, and the configuration that opens it, in one.

    What was written is there for the next store that opens it. The store holds its lock whenever it calls, or calls
    from its one writing thread; blocks without arrays of their own make that cheap.

    Args:
        budget: bytes, or what else blocks count.
        replace: replacement policy, by its name or made for a trace.

    Attributes:
        written: bytes written so far.
    """

    name = SSD.name

    def __init__(self, budget: int, replace: str | Replacement) -> None:
        order = make(replace, budget) if isinstance(replace, str) else replace
        self._held = _Disk(budget, order, self._must_stay)
        self._pinned: IsPinned = lambda key: False
        self._dropped: OnDropped = lambda *_: None
        self._keep: frozenset[bytes] = frozenset()
        self.written = 0

    def open(self, *, pinned: IsPinned, dropped: OnDropped) -> KeptFolder:
        """Serve another store from now on."""
        self._pinned, self._dropped = pinned, dropped
        return self

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        return self._held.contains(keys)

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        return self._held.nearest(parent, tokens)

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        return self._held.with_checkpoints(parents)

    def eviction_reason(self, key: bytes) -> str:
        return ""

    def roots_of(self, head: bytes) -> set[bytes]:
        return set()

    def read(self, key: bytes) -> Block:
        """Return a block as its file would: how often it was used is not in it."""
        entry = self._held.get(key)
        if entry is None:
            raise TierMiss("it has left")
        return replace(entry.block, uses=1)

    def read_to(self, key: bytes, buffer: ReadBuffer) -> Block | None:
        return self.read(key)

    def quarantine(self, key: bytes) -> None:
        self.delete([key])

    def write(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]] = ()) -> set[bytes]:
        """Take blocks in as the folder does: none leaves that is given again, or whose child is given."""
        here = {block.key for block in blocks if block.key in self._held}
        self._keep = frozenset({*here, *(block.parent for block in blocks)})
        held = set(here)
        for block in blocks:
            if block.key in here:
                continue
            if not self._make_space(block.nbytes):
                break  # a child without its parent would never be found
            self._held.add(block, dirty=False)
            self.written += block.nbytes
            held.add(block.key)
        self._keep = frozenset()
        return held

    def touch(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if key in self._held:
                self._held.touch(key)

    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            if key in self._held:
                self._held.remove(key, evicted=False)

    def nbytes(self) -> int:
        return self._held.held

    def note(self, counters: Mapping[str, int]) -> None: ...

    def sync(self) -> bool:
        return True

    def stats(self) -> dict[str, Any]:
        return {"bytes": self._held.held, "blocks": len(self._held), "bytes_written": self.written, "trouble": ""}

    def problems(self) -> list[str]:
        return [line.replace("RAM", "SSD") for line in self._held.problems()]

    def close(self) -> None: ...

    def expire(self) -> None:
        """Remove the blocks that a replacement with lifetimes says have expired."""
        for entry in self._held.take_expired():
            self._dropped(entry.block.key, entry.nbytes, "evicted")

    def _must_stay(self, key: bytes) -> bool:
        return key in self._keep or self._pinned(key)

    def _make_space(self, need: int) -> bool:
        if need > self._held.budget:
            return False
        while self._held.held + need > self._held.budget:
            entry = self._held.victim()
            if entry is None:
                return False
            self._held.remove(entry.block.key, evicted=True)
            self._dropped(entry.block.key, entry.nbytes, "evicted")
        return True

    @property
    def budget(self) -> int:
        """What it may hold."""
        return self._held.budget

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[RamEntry]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class _Disk(OrderedRam):
    """The same structure under the other tier's name, which a match reports."""

    name = SSD.name
