"""Write blocks from RAM to the tiers below with one thread, while the decoder goes on.

The queue holds keys, never payloads: an unwritten block stays in RAM, within RAM's budget, until a tier below has it.
So memory is bounded by that budget, and a put that needs the memory of an unwritten block waits (back-pressure).

While a decoder computes, the thread has background priority: it writes small batches, and after each it pauses for a
multiple of the processor time that the batch took, however slow the file system is. It does not pause when a thread
waits for a block, or half of RAM is unwritten.
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

MAX_BATCH_BLOCKS, MAX_BATCH_BYTES = 32, 32 << 20

BACKGROUND_BATCH_BYTES = 1 << 20
"""Bytes of a batch that is written while a decoder computes."""

PAUSE_PER_CPU_SECOND, MAX_PAUSE_S = 32, 1.0
"""Seconds of pause after each second of processor time, beside a decoder: the thread takes three percent of a core.

`kvlab bench restore` measures what that costs the decoder (`write-behind`)."""

MAX_UNWRITTEN_SHARE = 0.5
"""Share of RAM that may be unwritten before the thread no longer pauses."""

NOTE_INTERVAL_S = 5.0
"""Seconds between two recordings of uses and counters."""

log = logging.getLogger("kvlab.store")


class WriteBehind:
    """Owns the writer's thread. ``condition`` is the store's lock; public methods are called with it held.

    ``write="through"`` has a put wait until its full blocks and checkpoints are written, ``"back"`` writes them behind
    it, ``"snapshot"`` at a flush only. A tail, which the next turn will replace by a longer block, is written only when
    its memory is needed or at a flush. A block is admitted to the tiers below after ``admit`` uses, the put being the
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
        self._paused_until = 0.0
        self._in_flight: set[bytes] = set()
        self._thread = threading.Thread(target=self._run, name="kvlab-store-writer", daemon=True)
        self._thread.start()

    # -- called by the store ------------------------------------------------------------------------------------

    def add(self, entry: RamEntry) -> None:
        """Queue a block that was put into RAM, unwritten."""
        self._queue[entry.block.key] = None

    def after_put(self, entries: Sequence[RamEntry]) -> None:
        """Wake the thread for added blocks; with ``through``, wait for them, and release the lock meanwhile."""
        self.wake()
        if self._write == "through":
            for entry in filter(self._whole, entries):
                self.wait_for(entry)

    def set_background_priority(self, active: bool) -> None:
        """Leave the processors to a decoder that computes, or stop doing so."""
        self.has_background_priority = active
        self._condition.notify_all()

    def head(self, head: bytes, root: bytes) -> None:
        self._heads.append((head, root))

    def wake(self) -> None:
        """Wake the thread; called once after a batch of puts or uses."""
        self._noted = False
        self._condition.notify_all()

    def admits(self, entry: RamEntry) -> bool:
        """Tell whether the block may be written: used often enough, and not refused since the last flush."""
        if self._write == "snapshot" and self._flushes_asked == self._flushes_done:
            return False
        return entry.uses >= self._admit and (entry.block.key in self._queue or entry.block.key in self._in_flight)

    def wait_for(self, entry: RamEntry) -> None:
        """Write a block now; return once it is written, or was refused. Releases the lock meanwhile."""
        while entry.dirty and self.admits(entry) and self._thread.is_alive():
            self.hurry(entry)
            self._condition.wait(1.0)

    def hurry(self, entry: RamEntry) -> None:
        """Write a block next, without waiting for it."""
        self._urgent = entry.block.key
        self._condition.notify_all()

    def flush(self) -> bool:
        """Write every admitted block and make it durable; return False when a tier could not promise that."""
        for key in self._ram.dirty:
            self._queue.setdefault(key)
        self._flushes_asked += 1
        mine = self._flushes_asked
        self._condition.notify_all()
        while self._flushes_done < mine and self._thread.is_alive():
            self._condition.wait(1.0)
        return self._durable

    def stop(self) -> None:
        """End the thread; unwritten blocks stay unwritten."""
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
            self._in_flight = {entry.block.key for entry in entries}
            delta = {} if entries else self._stats.delta()
        if entries:
            started = time.thread_time()
            held = self._write_to_tiers([entry.as_used() for entry in entries], heads)
            pause = PAUSE_PER_CPU_SECOND * (time.thread_time() - started)
            with self._condition:
                self._paused_until = time.monotonic() + min(pause, MAX_PAUSE_S)
                self._written(entries, held)
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
        return not self._noted and time.monotonic() - self._last_note > NOTE_INTERVAL_S

    def _until_due(self) -> float | None:
        """Return the seconds until the thread has to look for work by itself; None: it is woken."""
        now = time.monotonic()
        if self._queue and self._paused_until > now:
            return self._paused_until - now
        return None if self._noted else max(0.0, self._last_note + NOTE_INTERVAL_S - now) + 0.01

    def _written(self, entries: list[RamEntry], held: set[bytes]) -> None:
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
        self._in_flight = set()
        if blocks:
            self._stats.spilled(blocks, nbytes)
        self._condition.notify_all()

    def _next(self) -> list[RamEntry]:
        """Take off the queue what to write now, parents before children."""
        flushing = self._flushes_asked > self._flushes_done
        if self._write == "snapshot" and not flushing:
            return []
        is_full = self._ram.dirty_bytes > MAX_UNWRITTEN_SHARE * self._ram.budget
        pauses = self.has_background_priority and self._urgent is None and not (flushing or is_full)
        if pauses and time.monotonic() < self._paused_until:
            return []
        max_bytes = BACKGROUND_BATCH_BYTES if pauses else MAX_BATCH_BYTES
        chosen: OrderedDict[bytes, RamEntry] = OrderedDict()
        if self._urgent is not None:
            self._choose(self._urgent, chosen)
            self._urgent = None
        for tails in (False, True):
            if tails and not (flushing or (is_full and not chosen)):
                break
            for key in list(self._queue):
                entry = self._ram.dirty.get(key)
                if entry is None:
                    del self._queue[key]
                elif entry.uses >= self._admit and (tails or self._whole(entry)):
                    self._choose(key, chosen)
                if len(chosen) >= MAX_BATCH_BLOCKS or sum(one.nbytes for one in chosen.values()) >= max_bytes:
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
