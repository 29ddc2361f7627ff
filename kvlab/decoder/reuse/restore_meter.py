"""``RestoreMeter``: whether reading stored KV from a slow tier is quicker than computing it, learnt while serving."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from kvlab.speed import Speed
from kvlab.store.errors import TierMiss
from kvlab.store.matches import Piece
from kvlab.store.restore_choice import tokens_to_restore
from kvlab.tiers import RAM, REMOTE

PROMPTS = 32
"""Prompts whose time is remembered."""
KEPT_SHARE = 0.9
"""Of what was known of the drive, after each block read: some ten blocks count."""
PATIENCE = 16
"""Requests that do not read before the drive is timed again: it may be quicker by then."""
COPY_TOKENS_PER_S = 1e12
"""Of blocks that are in RAM already: nothing beside the others."""


class ComputedSooner(TierMiss):
    """Ends a read: the rest is computed sooner than it is read."""

    reason = "computed_sooner"


class RestoreMeter:
    """Learns how long prompts take, and how quick the drive is, from the requests of one decoder."""

    def __init__(self) -> None:
        self._prompts: deque[tuple[int, int, float]] = deque(maxlen=PROMPTS)
        self._drive = 0.0, 0.0
        self._refused = 0
        self._prefill: Speed | None = None

    def computed(self, start: int, tokens: int, seconds: float) -> None:
        """Note that ``tokens`` of a prompt behind its first ``start`` took so long."""
        if tokens > 0 and seconds > 0:
            self._prompts.append((start, tokens, seconds))
            self._prefill = _fitted(list(self._prompts))

    def read(self, tokens: int, seconds: float) -> None:
        """Note that so many tokens were read below RAM in that time."""
        known_tokens, known_s = self._drive
        self._drive = KEPT_SHARE * known_tokens + tokens, KEPT_SHARE * known_s + seconds
        self._refused = 0

    def timed(self, found: tuple[int, float] | None) -> None:
        """Note tokens and seconds of a read for no request, in place of all that was known; None: nothing is known."""
        self._drive, self._refused = found or (0.0, 0.0), 0

    def computing_s(self, start: int, tokens: int) -> float | None:
        """Return the seconds that ``tokens`` behind the first ``start`` take; None while no prompt is known."""
        return None if self._prefill is None else self._prefill.prefill(start, tokens)

    @property
    def is_due(self) -> bool:
        """Whether the drive should be timed: nothing is known of it, or it was refused for a while."""
        return not self._drive[1] or self._refused >= PATIENCE

    @property
    def token_s(self) -> float:
        """Seconds in which a token is read below RAM; 0 where nothing is known."""
        tokens, seconds = self._drive
        return seconds / tokens if tokens else 0.0

    def worth_reading(self, at: int, runs: Sequence[tuple[str, int]], prompt_tokens: int) -> int:
        """Return up to which token of a prompt to read, of which the first ``at`` are restored.

        All while nothing is known of prompts or of the drive.

        Args:
            runs: what follows, as :func:`~kvlab.store.restore_choice.tokens_to_restore` takes it.
            prompt_tokens: those of the whole prompt.
        """
        if self._prefill is None or not self.token_s:
            return at + sum(size for _, size in runs)
        speed = Speed(
            self._prefill.token_s,
            token2_s=self._prefill.token2_s,
            ssd=1 / self.token_s,
            memory=COPY_TOKENS_PER_S,
        )
        return tokens_to_restore(speed, [(RAM.name, at), *runs], prompt_tokens, 1)

    def refused(self) -> None:
        """Note that a request did not read on."""
        self._refused += 1

    def watch(self, prompt_tokens: int, clock: Callable[[], float] = time.perf_counter) -> MeteredRead:
        """Return what decides on the read of a match of a prompt of so many tokens."""
        return MeteredRead(self, prompt_tokens, clock)


class MeteredRead:
    """Measures the reads of one match, and ends them with ``ComputedSooner`` where the rest is computed sooner.

    Before the first block below RAM, and behind each one that took longer than expected, it looks for the best end of
    the read by what is known then; so a drive that turns out to be slow costs the block that says so. What is in the
    remote was decided on before, see :mod:`kvlab.decoder.reuse.remote_meter`.
    """

    def __init__(self, meter: RestoreMeter, prompt_tokens: int, clock: Callable[[], float]) -> None:
        self._meter, self._prompt_tokens, self._clock = meter, prompt_tokens, clock
        self._started = self._expected_s = 0.0
        self._until = -1
        self._is_drive = True

    def before(self, pieces: Sequence[Piece]) -> None:
        """Note that the first piece is about to be read. Raises ``ComputedSooner``."""
        self._is_drive = pieces[0].tier != REMOTE.name
        if self._is_drive and pieces[0].start >= self._until:
            self._decide(pieces)
        self._started = self._clock()

    def _decide(self, pieces: Sequence[Piece]) -> None:
        at, runs = pieces[0].start, list[tuple[str, int]]()
        for piece in itertools.takewhile(lambda one: one.tier != REMOTE.name, pieces):
            tokens = runs.pop()[1] if runs and runs[-1][0] == piece.tier else 0
            runs.append((piece.tier, tokens + piece.used))
        self._until, self._expected_s = self._meter.worth_reading(at, runs, self._prompt_tokens), self._meter.token_s
        if self._until <= at:
            self._meter.refused()
            raise ComputedSooner(f"tokens from {at} on are computed sooner than read")

    def after(self, tokens: int) -> None:
        """Note that the piece was read, a block of so many tokens."""
        if not self._is_drive:
            return
        taken = self._clock() - self._started
        self._meter.read(tokens, taken)
        if taken > tokens * self._expected_s:
            self._until = -1


def _fitted(prompts: Sequence[tuple[int, int, float]]) -> Speed:
    """Fit what a prompt costs besides, a token, and a token squared, to prompts that may start behind known tokens.

    Of fewer lengths fewer of the three are fitted: else the noise of two prompts would be taken for attention.
    """
    starts, tokens, seconds = (np.array(column, float) for column in zip(*prompts, strict=True))
    columns = np.stack([np.ones(len(tokens)), tokens, (starts + tokens) ** 2 - starts**2], axis=1) / seconds[:, None]
    best, least = (0.0, float(np.median(seconds / tokens)), 0.0), math.inf
    lengths = len(np.unique(np.stack([starts, tokens]), axis=1).T)
    for terms in ((0, 1, 2), (0, 1), (1, 2), (1,)):
        if len(terms) >= max(2, lengths) and not (terms == (0, 1) and lengths == 2):
            continue
        found, *_ = np.linalg.lstsq(columns[:, terms], np.ones(len(seconds)), rcond=None)
        error = float(((columns[:, terms] @ found - 1) ** 2).sum())
        if (found >= 0).all() and found[terms.index(1)] > 0 and error < least - 1e-12:
            full = np.zeros(3)
            full[list(terms)] = found
            best, least = (float(full[0]), float(full[1]), float(full[2])), error
    base, token, token2 = best
    return Speed(token, base_s=base, token2_s=token2)
