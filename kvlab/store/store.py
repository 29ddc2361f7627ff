"""Keep KV at rest in tiers, and find it by its tokens."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from kvlab.errors import StoreError
from kvlab.store import keys as k
from kvlab.store.blocks import Block, cut_blocks, cut_checkpoint, plan
from kvlab.store.config import StoreConfig
from kvlab.store.errors import TierCorrupt, TierMiss
from kvlab.store.keys import Namespace
from kvlab.store.lookup import Lookup
from kvlab.store.matches import Match, Piece, Put, Query, Report
from kvlab.store.pins import Pins
from kvlab.store.protocols import AwaitedTier, Patience, ReadWatch, Tier, TimedTier
from kvlab.store.ram.insertion import RamInserter
from kvlab.store.ram.tier import RamTier
from kvlab.store.read_buffers import Payload, PayloadList, PayloadSink, ReadBuffer
from kvlab.store.stats import Observer, StoreStats, by_tier
from kvlab.store.write_behind import WriteBehind

T = TypeVar("T")


class Store:
    """Keeps blocks of KV by chained key, in RAM and in the tiers below it that ``config`` names.

    ``on_event(kind, fields)`` is called for ``stored``, ``spilled``, ``evicted`` and ``corrupt``, each with ``blocks``
    and ``bytes``; the call comes from any thread with the store's lock held, and must neither block nor raise.

    Thread-safe. Once it is open, only misuse raises: a tier in trouble costs hits, never an exception.
    """

    def __init__(self, config: StoreConfig, *, on_event: Observer | None = None) -> None:
        self.block = config.block
        self._lock = threading.Condition(threading.RLock())
        self._stats = StoreStats(on_event)
        self._pins = Pins()
        self._closed = False
        self._ram = RamTier(config.ram, config.replace, self._pins.__contains__)
        self._pins.unpinned = self._ram.unpinned
        self._tiers: tuple[Tier, ...] = tuple(
            tier.open(pinned=self._is_needed, dropped=self._on_dropped) for tier in config.below
        )
        self._writer: WriteBehind | None = None
        if self._tiers:
            self._writer = WriteBehind(
                self._lock, self._ram, self._tiers, self._stats, write=config.write, admit=config.admit
            )
        self._inserter = RamInserter(self._ram, self._tiers, self._writer, self._stats, self._pins)

    @property
    def on_event(self) -> Observer | None:
        return self._stats.observer

    @on_event.setter
    def on_event(self, observer: Observer | None) -> None:
        self._stats.observer = observer

    # -- finding and reading ------------------------------------------------------------------------------------

    def match(self, ns: Namespace, tokens: Sequence[int] | np.ndarray, *, checkpoint: bool = False) -> Match:
        """Find the longest reusable prefix of ``tokens``; with ``checkpoint``, the longest that also has one.

        Its blocks stay until the match is read or released.
        """
        return self._find(self._query(ns, tokens, checkpoint))

    def _find(self, query: Query, because: str = "") -> Match:
        with self._lock:
            self._pins.collect()
            found = Lookup(query, self._ram, self._tiers, self._stats.ghosts).run()
            miss = because or found.miss
            self._stats.missed(miss)
            return self._pins.hold(Match.of(query, found.pieces, miss, found.checkpoint, self._pins.ticket()))

    def stored(self, ns: Namespace, tokens: Sequence[int] | np.ndarray) -> int:
        """Count the leading tokens that are stored as full blocks: a put can leave them out. Pins nothing."""
        query = self._query(ns, tokens, False)
        with self._lock:
            return Lookup(query, self._ram, self._tiers, self._stats.ghosts).full_tokens()

    def read(self, match: Match) -> tuple[list[Payload], Match]:
        """Return the payloads of a match, in order, each cut to its used tokens, and the match that they make up.

        The match is that of :meth:`read_into`. The arrays are shared and cannot be written to.
        """
        kept = PayloadList()
        found = self._read(match, kept)
        return kept.payloads[: len(found.pieces)], found

    def missed(self, reason: str) -> None:
        """Count a match that was found, and then cut by the caller, among the misses, with the reason."""
        with self._lock:
            self._stats.missed(reason)

    def read_into(
        self, match: Match, sink: PayloadSink, watch: ReadWatch | None = None, patience: Patience | None = None
    ) -> Match:
        """Hand the payloads of a match to ``sink``, each cut to its used tokens; return the match they make up.

        That is ``match`` itself, unless a block proved bad or gone, or ``watch`` ended the read: then it is shorter,
        with ``miss`` saying why, and for a match with a checkpoint it is the next best one, which ``sink`` gets from
        the beginning. Blocks read from below RAM are kept there from their second reading on: the first costs no
        memory. ``patience`` bounds the wait for tiers behind a network.
        """
        return self._read(match, sink, ReadBuffer(sink), watch, patience)

    def _read(
        self,
        match: Match,
        sink: PayloadSink,
        buffer: ReadBuffer | None = None,
        watch: ReadWatch | None = None,
        patience: Patience | None = None,
    ) -> Match:
        query = match.query
        if query is None or not self._pins.held(match):
            raise StoreError("this match was read or released before; match again")
        count, reason = self._read_pieces(match.pieces, query, sink, buffer, watch, patience)
        used = match.pieces[:count]
        with self._lock:
            self._touch([piece.key for piece in reversed(used)])  # leaves first, so that heads are the younger ones
            self._stats.restored(len(used))
            if not reason:
                self._pins.unpin(match, keep=[match.checkpoint] if match.checkpoint is not None else [])
                return match
            self._pins.unpin(match)
            if match.checkpoint is None:
                self._stats.missed(reason)
                return Match.of(query, used, reason, None, match.ticket)
        return self._read(self._find(query, reason), sink, buffer, watch, patience)

    def _read_pieces(
        self,
        pieces: Sequence[Piece],
        query: Query,
        sink: PayloadSink,
        buffer: ReadBuffer | None,
        watch: ReadWatch | None,
        patience: Patience | None,
    ) -> tuple[int, str]:
        """Hand pieces to the sink; return how many it has now, and why not all."""
        parent, count = query.ns.root(), 0
        for piece in pieces:
            is_watched = watch is not None and piece.tier != self._ram.name
            try:
                if watch is not None and is_watched:
                    watch.before(pieces[count:])
                block: Block | None
                if buffer is None:
                    block = self._fetch(piece.key)
                else:
                    buffer.start, buffer.wanted = piece.start, piece.used
                    most_s = patience.left_s(piece.start) if patience is not None else math.inf
                    block = self._fetch_to(piece.key, buffer, most_s)
                self._check_piece(block, piece, parent, query)
            except TierMiss as error:
                return count, error.reason
            parent, count = piece.key, count + 1
            if block is not None:
                cut = piece.used < block.length
                payload = {n: a[:, : piece.used] for n, a in block.payload.items()} if cut else block.payload
                sink.take(payload, piece.start)
            if watch is not None and is_watched:
                watch.after(piece.length)
        return count, ""

    def timed_read(self, ns: Namespace) -> tuple[int, float] | None:
        """Read one block like those of ``ns`` from the first tier below RAM that can say how quick it is.

        Returns its tokens and the seconds that took; None where no tier can. Nothing counts as used.
        """
        for tier in self._tiers:
            if isinstance(tier, TimedTier) and (found := tier.timed_read(ns)) is not None:
                return found
        return None

    def read_checkpoint(self, match: Match) -> Payload | None:
        """Read the state at exactly ``match.tokens``; None when it proved bad or gone (then match again)."""
        if match.checkpoint is None:
            return None
        try:
            payload = self._fetch(match.checkpoint).payload
        except TierMiss as error:
            with self._lock:
                self._stats.missed(error.reason)
            return None
        else:
            with self._lock:
                self._touch([match.checkpoint])
            return payload
        finally:
            self.release(match)

    def release(self, match: Match) -> None:
        """Unpin a match that will not be read. Harmless after it was read."""
        with self._lock:
            self._pins.unpin(match)

    # -- storing ------------------------------------------------------------------------------------------------

    def put(
        self,
        ns: Namespace,
        tokens: Sequence[int] | np.ndarray,
        start: int,
        payloads: Sequence[Payload],
        *,
        seconds: float | None = None,
    ) -> Put:
        """Store KV of ``tokens`` from ``start`` (a block boundary) on: full blocks, of which the last may be a tail.

        Each array is ``[heads, tokens, width]``; it is kept as it is, so do not write to it afterwards. What is stored
        already is left alone; a tail that a longer block covers is dropped. ``seconds`` is how long computing all this
        took, for ``replace=cost``; without it a block costs what its tokens and its position suggest. Raises
        ``StoreError`` for shapes that do not fit.
        """
        query = self._query(ns, tokens, False)
        slots = plan(ns, query.tokens, start, payloads, seconds)
        with self._lock:
            new = self._unknown([slot.key for slot in slots])
            put = self._inserter.add(cut_blocks(ns, [slot for slot in slots if slot.key in new]))
            if put.blocks and start == 0:
                head, root = ns.head(query.tokens), ns.root()
                if self._stats.ghosts.seen(head, root) and self._writer is not None:
                    self._writer.head(head, root)
        return put

    def put_checkpoint(
        self, ns: Namespace, tokens: Sequence[int] | np.ndarray, payload: Payload, *, seconds: float | None = None
    ) -> Put:
        """Store whole-layer state after exactly ``tokens``, arrays of any shape. See ``put``."""
        query = self._query(ns, tokens, True)
        block = cut_checkpoint(ns, query.tokens, payload, seconds)
        with self._lock:
            return self._inserter.add([block] if self._unknown([block.key]) else [])

    def _unknown(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return the keys that no tier has."""
        self._pins.collect()
        new = {key for key in keys if key not in self._ram}
        for tier in self._tiers:
            new -= tier.contains(list(new))
        return new

    # -- state --------------------------------------------------------------------------------------------------

    def tiers_bytes(self) -> dict[str, int]:
        """Return the bytes at rest by tier; those of a folder that others share are the whole folder's."""
        with self._lock:
            held = {self._ram.name: self._ram.held}
        return held | {tier.name: tier.nbytes() for tier in self._tiers}

    @property
    def ram_budget(self) -> int:
        """Bytes that the RAM tier may hold."""
        return self._ram.budget

    def stats(self) -> dict[str, Any]:
        """Return what is held now (``<tier>_bytes``, ``<tier>_blocks``) and what has happened since the store opened.

        Counters of the tiers below RAM, such as ``bytes_written``, are added up.
        """
        with self._lock:
            happened = self._stats.figures() | {"unwritten_bytes": self._ram.dirty_bytes}
            ram = {"bytes": self._ram.held, "blocks": len(self._ram)}
        return happened | by_tier({self._ram.name: ram} | {tier.name: tier.stats() for tier in self._tiers})

    def check_integrity(self) -> Report:
        """Compare every structure with every other. Files are listed, not read: ``kvlab store verify`` reads them."""
        with self._lock:
            problems = self._ram.problems() + self._pins.problems()
            blocks, nbytes = len(self._ram), self._ram.held
        for tier in self._tiers:
            problems += tier.problems()
            blocks, nbytes = blocks + tier.stats()["blocks"], nbytes + tier.nbytes()
        return Report(blocks, nbytes, tuple(problems))

    def set_background_priority(self, active: bool) -> None:
        """Say whether a decoder computes beside the writer.

        Write-behind then takes three percent of a core, until half of RAM is unwritten. The last call counts; one that
        changes nothing costs nothing.
        """
        if self._writer is not None and self._writer.has_background_priority != active:
            with self._lock:
                self._writer.set_background_priority(active)

    def flush(self) -> bool:
        """Write what is unwritten and make it survive a power cut; return False when a tier cannot promise that."""
        if self._writer is None or self._closed:
            return self._writer is None
        with self._lock:
            return self._writer.flush()

    def close(self) -> None:
        """Flush, and close every tier. Idempotent."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        if self._writer is not None:
            with self._lock:
                self._writer.stop()
        for tier in self._tiers:
            tier.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inner parts --------------------------------------------------------------------------------------------

    def _query(self, ns: Namespace, tokens: Sequence[int] | np.ndarray, checkpoint: bool) -> Query:
        if ns.block != self.block:
            raise StoreError(f"the namespace has blocks of {ns.block} tokens, the store of {self.block}")
        if self._closed:
            raise StoreError("the store is closed")
        return Query(ns, k.as_tokens(tokens), checkpoint)

    def _fetch(self, key: bytes, most_s: float = math.inf) -> Block:
        """Read a block from the fastest tier that has it; keep one from below in RAM if that takes no waiting."""
        with self._lock:
            entry = self._ram.get(key)
        if entry is not None:
            return entry.block
        block = self._from_below(key, most_s, lambda tier: tier.read(key))
        with self._lock:
            self._inserter.keep(block)
        return block

    def _fetch_to(self, key: bytes, buffer: ReadBuffer, most_s: float) -> Block | None:
        """Do as :meth:`_fetch`, but read a block from below for the first time into ``buffer``; None: into its sink."""
        with self._lock:
            entry = self._ram.get(key)
            is_again = entry is None and self._inserter.is_wanted(key)
        if entry is not None:
            return entry.block
        if is_again:
            return self._fetch(key, most_s)
        return self._from_below(key, most_s, lambda tier: tier.read_to(key, buffer))

    def _from_below(self, key: bytes, most_s: float, read: Callable[[Tier], T]) -> T | Block:
        error = TierMiss("no tier has it")
        for tier in self._tiers:
            try:
                return tier.read_within(key, most_s) if isinstance(tier, AwaitedTier) else read(tier)
            except TierMiss as miss:
                error = miss
        raise error

    def _check_piece(self, block: Block | None, piece: Piece, parent: bytes, query: Query) -> None:
        """Verify parent and tokens of a block: a damaged index may name the wrong one.

        For a block that was read into the sink, the key stands for both.
        """
        asked = query.tokens[piece.start : piece.start + piece.used].tobytes()
        if block is None:
            is_right = piece.key == k.chain(parent, asked)
        else:
            is_right = block.parent == parent and block.tokens.startswith(asked)
        if is_right:
            return
        with self._lock:
            if piece.key in self._ram:
                self._ram.remove(piece.key, evicted=False)
        for tier in self._tiers:
            tier.quarantine(piece.key)
        raise TierCorrupt("the index led to another block")

    def _touch(self, keys: list[bytes]) -> None:
        for key in keys:
            if key in self._ram:
                self._ram.touch(key)
        for tier in self._tiers:
            tier.touch(keys)
        if self._writer is not None:
            self._writer.wake()

    def _is_needed(self, key: bytes) -> bool:
        return key in self._pins or self._ram.has_children(key)

    def _on_dropped(self, key: bytes, nbytes: int, reason: str) -> None:
        with self._lock:
            self._stats.left(key, nbytes, reason)
