"""``ReadPatience``: how long blocks behind a network are worth waiting for, by what computing their tokens takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from kvlab.decoder.reuse.restore_meter import RestoreMeter
from kvlab.store import Match
from kvlab.tiers import REMOTE

WAIT_SHARE = 0.1
"""Of the time that computing the awaited tokens takes: what a read that ends without them may cost."""
MIN_TOKENS_FOR_SPEED = 16
"""Tokens of a prompt whose time tells a speed: of fewer, most of it is spent on the weights once."""


class ReadPatience:
    """Bounds the read of one match: implements ``Patience`` of the store.

    A read may take as long as computing what has come by then, and :data:`WAIT_SHARE` of the rest. So a remote that
    hangs or drips costs a request that share at most, and one that is quicker than computing is never cut off. While no
    speed is known, only the tier's own limits hold.
    """

    def __init__(self, computing: RestoreMeter, match: Match, clock: Callable[[], float] = time.perf_counter) -> None:
        self._computing, self._end, self._clock = computing, match.tokens, clock
        self._first = next((piece.start for piece in match.pieces if piece.tier == REMOTE.name), match.tokens)
        self._since: float | None = None

    def left_s(self, start: int) -> float:
        if start < self._first:
            return math.inf
        now = self._clock()
        if self._since is None:
            self._since = now
        come = start - self._first
        saved = self._computing.computing_s(self._first, come) if come else 0.0
        awaited = self._computing.computing_s(start, self._end - start)
        if saved is None or awaited is None:
            return math.inf
        return max(0.0, saved + WAIT_SHARE * awaited - (now - self._since))
