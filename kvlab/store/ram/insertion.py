"""Insert blocks into RAM, and evict others for them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvlab.store.blocks import BLOCK, Block
from kvlab.store.matches import Put
from kvlab.store.pins import Pins
from kvlab.store.protocols import Tier, TierIndex
from kvlab.store.ram.tier import RamEntry, RamTier
from kvlab.store.stats import StoreStats
from kvlab.store.write_behind import WriteBehind

MAX_READ_ONCE_KEYS = 4096
"""Blocks whose first reading from below RAM is remembered: their second one keeps them in RAM."""


class RamInserter:
    """Fills RAM within its budget. The caller holds the store's lock; ``add`` releases it while it waits."""

    def __init__(
        self, ram: RamTier, tiers: Sequence[Tier], writer: WriteBehind | None, stats: StoreStats, pins: Pins
    ) -> None:
        self._ram, self._tiers, self._writer, self._stats, self._pins = ram, tiers, writer, stats, pins
        self._read_once: OrderedDict[bytes, bool] = OrderedDict()
        self._entering: Counter[bytes] = Counter()

    def add(self, new: Sequence[Block]) -> Put:
        """Take in blocks that no tier has, parents first; none of them and of their parents is lost for another one.

        Waits for the writer where RAM is full of unwritten ones, and where blocks are written through.
        """
        with self._held(new):
            entries = self._enter(new)
        put = Put(len(entries), sum(entry.nbytes for entry in entries))
        if entries:
            self._stats.stored(put.blocks, put.bytes)
            if self._writer is not None:
                self._writer.after_put(entries)
        return put

    def _enter(self, new: Sequence[Block]) -> list[RamEntry]:
        entries: list[RamEntry] = []
        while (entry := self._ram.expired()) is not None:
            self._evict(entry, lost=not self._tiers)
        for block in new:
            if block.kind == BLOCK and block.length < block.ns.block and self._covered(block):
                continue
            self._ram.expect(block)
            if not self._make_space(block.nbytes, wait=True):
                break  # everything is being read; a child without its parent would never be found
            if block.key in self._ram:  # another thread put it while this one waited for space
                continue
            if block.kind == BLOCK:
                self._drop_covered_by(block)
            entry = self._ram.add(block, dirty=self._writer is not None)
            self._stats.ghosts.back(block.key)
            if self._writer is not None:
                self._writer.add(entry)
            entries.append(entry)
        return entries

    @contextmanager
    def _held(self, new: Sequence[Block]) -> Iterator[None]:
        """Keep blocks and their parents from being lost while the blocks enter."""
        keys = {key for block in new for key in (block.parent, block.key)}
        self._entering.update(keys)
        try:
            yield
        finally:
            for key in keys:
                self._entering[key] -= 1
                if not self._entering[key]:
                    del self._entering[key]
                    self._ram.unpinned(key)

    def is_wanted(self, key: bytes) -> bool:
        """Tell whether a block below RAM is read for the second time, so that it should be kept in RAM."""
        if self._read_once.pop(key, False):
            return True
        self._read_once[key] = True
        if len(self._read_once) > MAX_READ_ONCE_KEYS:
            self._read_once.popitem(last=False)
        return False

    def keep(self, block: Block) -> None:
        """Take in a block read from below, unless that would have to wait."""
        if block.key not in self._ram and self._make_space(block.nbytes, wait=False):
            self._ram.add(block, dirty=False)

    def _make_space(self, need: int, *, wait: bool) -> bool:
        """Evict until ``need`` more bytes fit, or RAM is empty; return False when every block left must stay."""
        while self._ram.held and self._ram.held + need > self._ram.budget:
            entry = self._ram.victim(self._must_stay)
            if entry is None:
                return False
            lost = self._would_be_lost(entry)
            if entry.dirty and not lost and self._writer is not None:
                if not wait:
                    self._writer.hurry(entry)
                    return False
                self._writer.wait_for(entry)
                continue  # much may have changed meanwhile
            self._evict(entry, lost=lost)
        return True

    def _evict(self, entry: RamEntry, *, lost: bool) -> None:
        self._ram.remove(entry.block.key, evicted=True)
        if lost:
            self._stats.left(entry.block.key, entry.nbytes, "evicted")

    def _must_stay(self, entry: RamEntry) -> bool:
        return entry.block.key in self._entering and self._would_be_lost(entry)

    def _would_be_lost(self, entry: RamEntry) -> bool:
        """Tell whether no tier below has this block, or will have it."""
        return not self._tiers or (entry.dirty and (self._writer is None or not self._writer.admits(entry)))

    def _covered(self, tail: Block) -> bool:
        indexes: tuple[TierIndex, ...] = (self._ram, *self._tiers)
        for index in indexes:
            child = index.nearest(tail.parent, tail.tokens)
            if child is not None and child.tokens.startswith(tail.tokens):
                return True
        return False

    def _drop_covered_by(self, block: Block) -> None:
        for tail in self._ram.covered(block.parent, block.tokens):
            if tail not in self._pins:
                self._ram.remove(tail, evicted=False)
                for tier in self._tiers:
                    tier.delete([tail])
