"""``PrefillBudget``: how much of the prompts to compute between two decode steps, so that decoding goes on meanwhile.

Work is counted in tokens times layers: a chunk of tokens goes through the model a few layers at a time. A *round* is a
decode step and the work on prompts that follows it.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

MAX_ROUND_STEPS = 2.6
"""Longest duration of a round, in durations of a decode step without work on prompts.

Tuned with ``kvlab bench pace`` on two x86 cores: gaps between tokens should have a p99 of at most 4 times their median
without a prompt, while the prompt is computed at half of its undisturbed rate or more.
"""
ROUNDS_PER_CHUNK = 12
"""Rounds that a chunk takes: new prompts wait for its end, but larger chunks have larger matrix products. Check a
change with ``kvlab bench pace``."""
MIN_CHUNK_TOKENS = 4
"""Fewest tokens of a prompt in a chunk."""
CHUNK_MULTIPLE_TOKENS = 8
"""Larger chunks are multiples of this many tokens, so that arrays of the same shapes use the same memory again."""
MIN_ROUND_WORK, FIRST_ROUND_WORK = 4, 96
"""Tokens times layers in a round: the fewest, below which fixed costs dominate, and those of the first round."""
MIN_CHANGE, MAX_CHANGE = 0.5, 1.25
"""Bounds of the factor by which the work of a round changes at a time."""
NOISE_CHANGE, NOISE_EXPONENT = 0.8, 0.3
"""A factor of 0.8 or more is raised to this power, because most of it is noise in the duration of rounds. Check a
change with ``kvlab bench pace``."""
STEP_SAMPLES = 8
"""Decode steps without work on prompts, whose median is the duration of a step."""
REMEASURE_ROUNDS, REMEASURE_CHANGED_ROUNDS = 128, 16
"""Rounds after which the duration of a step is measured again; the latter where many sequences have joined or left."""
MEASURING_ROUNDS = 4
"""Rounds without work on prompts, in which it is measured; the first still waits for work that was started before."""


def _rounded(tokens: int) -> int:
    """Round a number of tokens to the multiple that larger chunks are of."""
    return CHUNK_MULTIPLE_TOKENS * round(tokens / CHUNK_MULTIPLE_TOKENS) if tokens > CHUNK_MULTIPLE_TOKENS else tokens


class PrefillBudget:
    """Sizes the work on prompts by the duration of earlier rounds. Without decoding sequences, it is not limited.

    Args:
        most: most tokens in a chunk.
        depth: parts that a forward pass is split into: its layers, or 1.
        preemptible: a pass can be interrupted within a part: then time limits a round, and its work only sizes chunks.
    """

    def __init__(self, most: int, depth: int = 1, *, preemptible: bool = False) -> None:
        self.most = most
        self._depth = depth
        self._preemptible = preemptible
        self._steps_s: deque[float] = deque(maxlen=STEP_SAMPLES)
        self._sequences = self._rounds_since_measured = self._measuring_left = 0
        self._granted = float(FIRST_ROUND_WORK)
        self._work_before = 0
        self._last_s = float("inf")

    def chunk(self, prefilling: int, decoding: int) -> int:
        """Return the tokens a prompt for the next chunk of ``prefilling`` prompts, beside ``decoding`` sequences."""
        if not decoding:
            return self.most
        rounds = ROUNDS_PER_CHUNK / self._depth if self._preemptible else 1 / math.ceil(self._depth / ROUNDS_PER_CHUNK)
        tokens = int(self._granted * rounds / max(1, prefilling))
        return min(self.most, max(MIN_CHUNK_TOKENS, _rounded(tokens)))

    def work(self, decoding: int) -> int | None:
        """Return the tokens times layers for the next round of ``decoding`` sequences; None for no limit."""
        if not decoding:
            return None
        if (
            self._rounds_since_measured
            >= (REMEASURE_CHANGED_ROUNDS if self._has_changed(decoding) else REMEASURE_ROUNDS)
            or self._preemptible
            and not self._steps_s
        ):
            self._rounds_since_measured, self._measuring_left = 0, MEASURING_ROUNDS
        if self._measuring_left:
            self._measuring_left -= 1
            return 0
        return int(self._granted)

    def until(self, started: float, decoding: int) -> float:
        """Return the time at which work on prompts stops, in a round that began at ``started``, both in seconds.

        It is infinity where time does not limit the round.
        """
        if not decoding or not self._preemptible or not self._steps_s:
            return math.inf
        return started + MAX_ROUND_STEPS * statistics.median(self._steps_s)

    def observe(self, seconds: float, work: int, decoded: int) -> None:
        """Take note of a round that took ``seconds``, gave ``decoded`` sequences a token and started ``work``.

        The device may compute that work in the next round (:mod:`kvlab.decoder.prefill.chunked`), so that a duration
        says something only where two rounds had about the same work.
        """
        done, self._work_before = self._work_before, work
        last, self._last_s = self._last_s, seconds
        if not decoded:
            return
        self._rounds_since_measured += 1
        if not done and not work:
            self._add_step(seconds, decoded)
        elif self._preemptible:
            self._granted = max(
                MIN_ROUND_WORK, min(self.most * self._depth, self._granted + (work - self._granted) / ROUNDS_PER_CHUNK)
            )
        elif self._steps_s and min(done, work) >= 0.8 * self._granted:
            # The shorter of two rounds: one slow round alone changes nothing.
            self._adjust(min(done, work), MAX_ROUND_STEPS * statistics.median(self._steps_s) / min(seconds, last))

    def _add_step(self, seconds: float, decoded: int) -> None:
        """Take note of a decode step without work on prompts."""
        if self._has_changed(decoded):
            self._steps_s.clear()
        self._sequences, self._rounds_since_measured = decoded, 0
        self._steps_s.append(seconds)

    def _has_changed(self, decoding: int) -> bool:
        """Return whether many sequences have joined or left since a step was measured."""
        return abs(decoding - self._sequences) > self._sequences / 4

    def _adjust(self, work: int, wanted: float) -> None:
        """Change the work of a round, after rounds of this ``work`` that should take ``wanted`` times as long."""
        change = max(MIN_CHANGE, min(MAX_CHANGE, wanted if wanted < NOISE_CHANGE else wanted**NOISE_EXPONENT))
        # A chunk keeps its size while the granted work changes, so the new value follows from the work that was done.
        if change < 1:
            granted = min(self._granted, work * change)
        else:
            granted = min(self._granted * change, max(self._granted, work * wanted))
        self._granted = max(MIN_ROUND_WORK, min(self.most * self._depth, granted))
