"""Write-behind: one thread that takes unwritten blocks from RAM to the tier below, off the decoder's path.

The queue holds keys, never payloads: an unwritten block stays in RAM, within RAM's budget, until the tier below has
it. So memory is bounded by that budget, and a put that needs the room of an unwritten block waits (back-pressure).

While a decoder computes, the thread gives way: it writes small batches, and after each it rests for a multiple of the
processor's time that the batch took, however slow the file system is. That ends when someone waits for a block, or half
of RAM is unwritten.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from kvlab.store.blocks import BLOCK, Block
from kvlab.store.protocols import Tier
from kvlab.store.ram.tier import RamEntry, RamTier
from kvlab.store.stats import StoreStats

BATCH_BLOCKS, BATCH_BYTES = 32, 32 << 20
SMALL_BYTES = 1 << 20  # of a batch beside a decoder
REST, LONGEST_REST_S = 32, 1.0  # times as long as a batch took: three percent of a core
DIRTY = 0.5  # part of RAM that may be unwritten before the thread rests no longer
NOTE_S = 5.0  # how often uses and counters are written down
log = logging.getLogger("kvlab.store")


class WriteBehind:
    """``condition`` is the store's lock; every public method is called with it held.

    ``write="through"`` has a put wait until its full blocks and checkpoints are written, ``"back"`` writes them behind
    it, ``"snapshot"`` at a flush only. A tail, which the next turn will replace by a longer block, is written only when
    its room is needed or at a flush. A block is admitted to the tier below after ``admit`` uses, the put being the
    first.
    """

    def __init__(
        self,
        condition: threading.Condition,
        ram: RamTier,
        tiers: Sequence[Tier],
        stats: StoreStats,
        *,
        write: str,
        admit: int,
    ) -> None:
        self._condition, self._ram, self._tiers = condition, ram, tiers
        self._write, self._admit = write, admit
        self._stats = stats
        self._queue: OrderedDict[bytes, None] = OrderedDict()
        self._urgent: bytes | None = None
        self._heads: list[tuple[bytes, bytes]] = []
        self._flushes_asked = self._flushes_done = 0
        self._durable = True
        self._stop = False
        self._last_note = time.monotonic()
        self._noted = True
        self.has_background_priority = False
        self._rest_until = 0.0
        self._flying: set[bytes] = set()
        self._thread = threading.Thread(target=self._run, name="kvlab-store-writer", daemon=True)
        self._thread.start()

    # -- called by the store ------------------------------------------------------------------------------------

    def add(self, entry: RamEntry) -> None:
        """A block was put into RAM, unwritten."""
        self._queue[entry.block.key] = None

    def after_put(self, entries: Sequence[RamEntry]) -> None:
        """Blocks were added; returns once those that are written through are. Lets go of the lock meanwhile."""
        self.wake()
        if self._write == "through":
            for entry in filter(self._whole, entries):
                self.wait_for(entry)

    def set_background_priority(self, active: bool) -> None:
        """Whether someone computes who had better have the processors."""
        self.has_background_priority = active
        self._condition.notify_all()

    def head(self, head: bytes, root: bytes) -> None:
        self._heads.append((head, root))

    def wake(self) -> None:
        """Something was put or used; called once after a batch of it."""
        self._noted = False
        self._condition.notify_all()

    def admits(self, entry: RamEntry) -> bool:
        """Whether the block may be written: used often enough, and not refused since the last flush."""
        if self._write == "snapshot" and self._flushes_asked == self._flushes_done:
            return False
        return entry.uses >= self._admit and (entry.block.key in self._queue or entry.block.key in self._flying)

    def wait_for(self, entry: RamEntry) -> None:
        """Have a block written now, and return once it is, or was refused. Lets go of the lock meanwhile."""
        while entry.dirty and self.admits(entry) and self._thread.is_alive():
            self.hurry(entry)
            self._condition.wait(1.0)

    def hurry(self, entry: RamEntry) -> None:
        """Have a block written next, without waiting for it."""
        self._urgent = entry.block.key
        self._condition.notify_all()

    def flush(self) -> bool:
        """Write every admitted block and make it durable; False when the tier could not promise that."""
        for key in self._ram.dirty:
            self._queue.setdefault(key)
        self._flushes_asked += 1
        mine = self._flushes_asked
        self._condition.notify_all()
        while self._flushes_done < mine and self._thread.is_alive():
            self._condition.wait(1.0)
        return self._durable

    def stop(self) -> None:
        """End the thread; what is unwritten stays so."""
        self._stop = True
        self._condition.notify_all()
        while self._thread.is_alive():
            self._condition.wait(0.05)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception:  # the decoder goes on without the tier rather than with an exception
            log.exception("kvlab store: write-behind stopped; going on in RAM only")
        with self._condition:
            self._stop = True
            self._queue.clear()
            self._durable = False
            self._condition.notify_all()

    def _turn(self) -> bool:
        with self._condition:
            entries = self._next()
            while not entries and not self._stop and self._flushes_asked == self._flushes_done and not self._note_due():
                self._condition.wait(self._until_due())
                entries = self._next()
            if self._stop:
                return False
            flush = self._flushes_asked if not entries else 0
            heads, self._heads = self._heads, []
            self._flying = {entry.block.key for entry in entries}
            delta = {} if entries else self._stats.delta()
        if entries:
            started = time.thread_time()
            held = self._write_to_tiers([entry.as_used() for entry in entries], heads)
            rest = REST * (time.thread_time() - started)
            with self._condition:
                self._rest_until = time.monotonic() + min(rest, LONGEST_REST_S)
                self._landed(entries, held)
            return True
        if heads:
            self._write_to_tiers([], heads)
        for tier in self._tiers:
            tier.note(delta)
        durable = all([tier.sync() for tier in self._tiers]) if flush > self._flushes_done else True
        with self._condition:
            self._last_note, self._noted = time.monotonic(), True
            if flush > self._flushes_done:
                self._durable, self._flushes_done = durable, flush
            self._condition.notify_all()
        return True

    def _write_to_tiers(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
        """Write to every tier; return the keys that at least one holds now."""
        return set[bytes]().union(*[tier.write(blocks, heads) for tier in self._tiers])

    def _note_due(self) -> bool:
        return not self._noted and time.monotonic() - self._last_note > NOTE_S

    def _until_due(self) -> float | None:
        """Seconds until there may be something to do that nobody tells of."""
        now = time.monotonic()
        if self._queue and self._rest_until > now:
            return self._rest_until - now
        return None if self._noted else max(0.0, self._last_note + NOTE_S - now) + 0.01

    def _landed(self, entries: list[RamEntry], held: set[bytes]) -> None:
        blocks = nbytes = 0
        for entry in entries:
            key = entry.block.key
            if key in held:
                if self._ram.get(key) is entry:
                    self._ram.clean(key)
                else:  # replaced by a longer block while it was written
                    for tier in self._tiers:
                        tier.delete([key])
                blocks, nbytes = blocks + 1, nbytes + entry.nbytes
        self._flying = set()
        if blocks:
            self._stats.spilled(blocks, nbytes)
        self._condition.notify_all()

    def _next(self) -> list[RamEntry]:
        """What to write now, parents before children; taken off the queue."""
        flushing = self._flushes_asked > self._flushes_done
        if self._write == "snapshot" and not flushing:
            return []
        short = self._ram.dirty_bytes > DIRTY * self._ram.budget
        gently = self.has_background_priority and self._urgent is None and not (flushing or short)
        if gently and time.monotonic() < self._rest_until:
            return []
        most = SMALL_BYTES if gently else BATCH_BYTES
        chosen: OrderedDict[bytes, RamEntry] = OrderedDict()
        if self._urgent is not None:
            self._choose(self._urgent, chosen)
            self._urgent = None
        for tails in (False, True):
            if tails and not (flushing or (short and not chosen)):
                break
            for key in list(self._queue):
                entry = self._ram.dirty.get(key)
                if entry is None:
                    del self._queue[key]
                elif entry.uses >= self._admit and (tails or self._whole(entry)):
                    self._choose(key, chosen)
                if len(chosen) >= BATCH_BLOCKS or sum(one.nbytes for one in chosen.values()) >= most:
                    break
        for key in chosen:
            self._queue.pop(key, None)
        return list(chosen.values())

    def _choose(self, key: bytes, chosen: OrderedDict[bytes, RamEntry]) -> None:
        chain: list[RamEntry] = []
        entry = self._ram.dirty.get(key)
        while entry is not None and entry.block.key not in chosen:
            chain.append(entry)
            entry = self._ram.dirty.get(entry.block.parent)
        for one in reversed(chain):
            chosen[one.block.key] = one

    @staticmethod
    def _whole(entry: RamEntry) -> bool:
        return entry.block.kind != BLOCK or entry.block.length == entry.block.ns.block
