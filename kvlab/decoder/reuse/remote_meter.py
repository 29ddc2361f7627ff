"""``RemoteMeter``: whether reading stored KV from the remote is quicker than computing it, learnt while serving."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from kvlab.decoder.reuse.restore_meter import PATIENCE, ComputedSooner, RestoreMeter
from kvlab.store import Match
from kvlab.store.read_buffers import ArraySpec, Payload, PayloadSink
from kvlab.tiers import REMOTE

READS = 16
"""Reads of the remote whose time is remembered."""
SPREAD = 2.0
"""Reads tell a start from a rate where the longest of them has so many times the bytes of the shortest."""


class RemoteMeter:
    """Learns what reads of the remote cost: what each one costs at its start, and its bytes. Belongs to one decoder.

    Blocks of a chain are asked for ahead, so a match is decided as a whole, before its first block from the remote.
    """

    def __init__(self, computing: RestoreMeter) -> None:
        self._computing = computing
        self._reads: deque[tuple[int, float]] = deque(maxlen=READS)
        self._token_bytes = 0.0
        self._refused = 0

    def read(self, tokens: int, size: int, seconds: float) -> None:
        """Note that so many tokens, of ``size`` bytes, came from the remote in that time."""
        if tokens > 0 and size > 0 and seconds > 0:
            self._reads.append((size, seconds))
            self._token_bytes = size / tokens

    def reading_s(self, tokens: int) -> float | None:
        """Return the seconds that reading so many tokens takes, as far as is known; None where nothing is.

        Where all reads had about the same bytes, more of them are taken to need no longer, and fewer of them
        proportionally less: so a read of another length is tried, and the next estimate knows better.
        """
        if not self._reads:
            return None
        size = tokens * self._token_bytes
        sizes, seconds = (np.array(column, float) for column in zip(*self._reads, strict=True))
        if sizes.max() < SPREAD * sizes.min():
            return float(np.median(seconds) * min(1.0, size / np.median(sizes)))
        rows = np.stack([np.ones(len(sizes)), sizes], axis=1) / seconds[:, None]
        (start, byte), *_ = np.linalg.lstsq(rows, np.ones(len(sizes)), rcond=None)
        if start < 0:
            return float(np.median(seconds / sizes) * size)
        return float(start + byte * size) if byte >= 0 else float(np.median(seconds))

    def shortened(self, match: Match) -> Match:
        """Return the match, or its pieces before those in the remote where these are computed sooner than read.

        The blocks of the whole match stay pinned until the one returned is read or released.
        """
        first = next((at for at, piece in enumerate(match.pieces) if piece.tier == REMOTE.name), None)
        if first is None:
            return match
        start = match.pieces[first].start
        reading = self.reading_s(sum(piece.used for piece in match.pieces if piece.tier == REMOTE.name))
        computing = self._computing.computing_s(start, match.tokens - start)
        if reading is None or computing is None or reading <= computing:
            return match
        self._refuse()
        used = match.pieces[:first]
        by_tier: dict[str, int] = {}
        for piece in used:
            by_tier[piece.tier] = by_tier.get(piece.tier, 0) + piece.used
        return replace(match, tokens=start, pieces=used, by_tier=by_tier, miss=ComputedSooner.reason)

    def _refuse(self) -> None:
        """Note that a match was not read; after some of them the remote's speed is forgotten, and tried again."""
        self._refused += 1
        if self._refused >= PATIENCE:
            self._refused = 0
            self._reads.clear()

    def timed(self, match: Match, sink: PayloadSink, clock: Callable[[], float] = time.perf_counter) -> TimedRemote:
        """Return a sink that hands on to ``sink`` what is read of ``match``, and times what comes from the remote."""
        return TimedRemote(self, match, sink, clock)


class TimedRemote:
    """Adds up the time of the blocks of one match that come from the remote."""

    def __init__(self, meter: RemoteMeter, match: Match, sink: PayloadSink, clock: Callable[[], float]) -> None:
        self._meter, self._sink, self._clock = meter, sink, clock
        self._remote = {piece.start: piece.used for piece in match.pieces if piece.tier == REMOTE.name}
        self._tokens, self._bytes, self._seconds = 0, 0, 0.0
        self._since: float | None = clock()

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> list[memoryview] | None:
        """Return the sink's memory for a block of the SSD, whose end nobody tells: the next block is not timed."""
        self._since = None
        return self._sink.targets(arrays, at)

    def take(self, payload: Payload, at: int) -> None:
        """Hand a block on."""
        self._sink.take(payload, at)
        now = self._clock()
        if at in self._remote and self._since is not None:
            self._tokens += self._remote[at]
            self._bytes += sum(array.nbytes for array in payload.values())
            self._seconds += now - self._since
        self._since = now

    def finish(self) -> None:
        """Note what was read from the remote."""
        self._meter.read(self._tokens, self._bytes, self._seconds)
