"""``SettledWriter``: the store's write-behind without its thread: what is due is written at the end of a request."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from kvlab.replay.sized_block import SizedBlock
from kvlab.store.blocks import Block
from kvlab.store.protocols import Tier
from kvlab.store.ram.tier import RamEntry, RamTier
from kvlab.store.stats import StoreStats
from kvlab.store.write_behind import WriteBehind


class SettledWriter(WriteBehind):
    """Chooses what to write, and when, as ``WriteBehind`` does, on the thread of its caller.

    It stands for a drive that keeps up: between two requests everything is written that ``WriteBehind`` would write by
    itself. Call ``settle`` at the end of each request.
    """

    def __init__(self, ram: RamTier, tiers: Sequence[Tier], stats: StoreStats, *, admit: int) -> None:
        condition = threading.Condition()
        condition.acquire()  # its methods are called with the lock held; here nothing else ever wants it
        super().__init__(condition, ram, tiers, stats, write="back", admit=admit)

    def _run(self) -> None:
        """End the thread at once."""

    def wait_for(self, entry: RamEntry) -> None:
        if entry.dirty and self.admits(entry):
            self.hurry(entry)
            self._write_next()

    def settle(self) -> None:
        """Write what ``WriteBehind`` writes before it waits for more."""
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        entries = self._next()
        if entries:
            self._in_flight = {entry.block.key for entry in entries}
            self._written(entries, self._write_to_tiers([_as_used(entry) for entry in entries], []))
        return bool(entries)

    @staticmethod
    def _whole(entry: RamEntry) -> bool:
        return not (isinstance(entry.block, SizedBlock) and entry.block.is_partial)


def _as_used(entry: RamEntry) -> Block:
    return entry.block.used_times(entry.uses) if isinstance(entry.block, SizedBlock) else entry.as_used()
