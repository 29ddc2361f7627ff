"""``RestoreMeter``: whether reading stored KV from a slow tier is quicker than computing it, learnt while serving."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from kvlab.speed import Speed
from kvlab.store.errors import TierMiss
from kvlab.store.read_buffers import ArraySpec, Payload, PayloadSink

PROMPTS = 32
"""Prompts whose time is remembered."""
KEPT_SHARE = 0.9
"""Of what was known of the drive, after each block read: some ten blocks count."""
PATIENCE = 16
"""Requests that do not read before one tries again: the drive may be quicker by then."""


class ComputedSooner(TierMiss):
    """Ends a read: the rest is computed sooner than it is read."""

    reason = "computed_sooner"


class RestoreMeter:
    """Learns how long prompts take, and how quick the drive is, from the requests of one decoder."""

    def __init__(self) -> None:
        self._prompts: deque[tuple[int, int, float]] = deque(maxlen=PROMPTS)
        self._bytes = self._seconds = 0.0
        self._refused = 0
        self._speed: Speed | None = None

    def computed(self, start: int, tokens: int, seconds: float) -> None:
        """Note that ``tokens`` of a prompt behind its first ``start`` took so long."""
        if tokens > 0 and seconds > 0:
            self._prompts.append((start, tokens, seconds))
            self._speed = _fitted(list(self._prompts))

    def read(self, size: int, seconds: float) -> None:
        """Note that so many bytes were read below RAM in that time."""
        self._bytes = KEPT_SHARE * self._bytes + size
        self._seconds = KEPT_SHARE * self._seconds + seconds

    def computing_s(self, start: int, tokens: int) -> float | None:
        """Return the seconds that ``tokens`` behind the first ``start`` take; None while no prompt is known."""
        return None if self._speed is None else self._speed.prefill(start, tokens)

    def is_worth_reading(self, start: int, tokens: int, size: int) -> bool:
        """Tell whether to read ``tokens`` behind the first ``start``, of ``size`` bytes: no slower than computing them.

        True while nothing is known of prompts or of the drive.
        """
        if self._speed is None or not self._seconds:
            return True
        return size * self._seconds / self._bytes <= self._speed.prefill(start, tokens)

    def refused(self) -> None:
        """Note that a request did not read on; after some of them the drive's speed is forgotten, and tried again."""
        self._refused += 1
        if self._refused >= PATIENCE:
            self._refused, self._bytes, self._seconds = 0, 0.0, 0.0

    def watched(self, sink: PayloadSink, tokens: int, clock: Callable[[], float] = time.perf_counter) -> WatchedSink:
        """Return a sink that hands on to ``sink`` what is read of a match of so many tokens, and ends it in time."""
        return WatchedSink(self, sink, tokens, clock)


class WatchedSink:
    """Measures the reads of one match, and ends them with ``ComputedSooner`` where the rest is computed sooner.

    Before each block that is read below RAM for the first time it compares reading all that is left of the match with
    computing it: a token costs the same to read wherever it stands and more to compute the deeper it stands, so that no
    other end of the read is better than this one or that of the match.
    """

    def __init__(self, meter: RestoreMeter, sink: PayloadSink, tokens: int, clock: Callable[[], float]) -> None:
        self._meter, self._sink, self._tokens, self._clock = meter, sink, tokens, clock
        self._pending: tuple[float, int] | None = None

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> list[memoryview] | None:
        """Return the sink's memory for a block. Raises ``ComputedSooner``."""
        self.finish()
        size = sum(array.nbytes for array in arrays)
        tokens = arrays[0].shape[1] if arrays else 1
        if not self._meter.is_worth_reading(at, self._tokens - at, size * (self._tokens - at) // tokens):
            self._meter.refused()
            raise ComputedSooner(f"tokens from {at} on are computed sooner than read")
        self._pending = self._clock(), size
        return self._sink.targets(arrays, at)

    def take(self, payload: Payload, at: int) -> None:
        """Hand a block on."""
        self.finish()
        self._sink.take(payload, at)

    def finish(self) -> None:
        """Note the end of the block that was read last."""
        if self._pending is not None:
            started, size = self._pending
            self._pending = None
            self._meter.read(size, self._clock() - started)


def _fitted(prompts: Sequence[tuple[int, int, float]]) -> Speed:
    """Fit what a prompt costs besides, a token, and a token squared, to prompts that may start behind known tokens."""
    starts, tokens, seconds = (np.array(column, float) for column in zip(*prompts, strict=True))
    columns = np.stack([np.ones(len(tokens)), tokens, (starts + tokens) ** 2 - starts**2], axis=1) / seconds[:, None]
    best, least = (0.0, float(np.median(seconds / tokens)), 0.0), math.inf
    for terms in ((0, 1, 2), (0, 1), (1, 2), (1,)):
        found, *_ = np.linalg.lstsq(columns[:, terms], np.ones(len(seconds)), rcond=None)
        error = float(((columns[:, terms] @ found - 1) ** 2).sum())
        if (found >= 0).all() and found[terms.index(1)] > 0 and error < least - 1e-12:
            full = np.zeros(3)
            full[list(terms)] = found
            best, least = (float(full[0]), float(full[1]), float(full[2])), error
    base, token, token2 = best
    return Speed(token, base_s=base, token2_s=token2)
