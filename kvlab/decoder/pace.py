"""How many prompt tokens to compute between two decode steps: by time, so that a long prompt freezes nobody."""

from __future__ import annotations

ROUND = 3.25
"""How long a decode step with a chunk of prompt behind it may take, in decode steps of their own."""
LEAST, FIRST = 4, 32
"""Tokens a chunk: the fewest, or the fixed cost of a forward pass would rule, and those of the first."""
SLOWER, FASTER = 0.5, 1.15
"""Bounds of what a chunk may become from one round to the next."""
NEAR, GAIN = 0.8, 0.3
"""A round that was at most so much too long moves the next chunk by this power of it: noise must not make it long."""
QUICKER, DEARER = 0.3, 0.03
"""Weights of a step that was quicker, or dearer, than the running mean: lone slow steps say little."""


class Pace:
    """Sizes prefill chunks from how long rounds took. Alone, a prompt gets chunks of ``most`` tokens."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._step_s: float | None = None
        self._granted = float(FIRST)
        self._under_way = 0
        self._last_s = float("inf")

    def chunk(self, prefilling: int, decoding: int) -> int:
        """Tokens for each of ``prefilling`` prompts before the ``decoding`` sequences get their next token."""
        if not decoding:
            return self.most
        return max(min(LEAST, self.most), min(self.most, int(self._granted / max(1, prefilling))))

    def saw(self, seconds: float, prefilled: int, decoded: int) -> None:
        """A round took ``seconds``, gave ``decoded`` sequences a token and set ``prefilled`` prompt tokens off.

        A chunk may be waited for only a round later (:mod:`kvlab.decoder.prefill`): where it was as large as the one
        before, that makes no difference.
        """
        done, self._under_way = self._under_way, prefilled
        last, self._last_s = self._last_s, seconds
        if not decoded:
            return
        if not done and not prefilled:
            self._step_s = blend(self._step_s, seconds)
        elif self._step_s is not None and min(done, prefilled) >= 0.8 * self._granted:
            # A lone slow round, in which storage grew, says nothing of the next.
            wanted = ROUND * self._step_s / min(seconds, last)
            change = wanted if wanted < NEAR else wanted**GAIN
            self._granted = max(LEAST, min(self.most, self._granted * max(SLOWER, min(FASTER, change))))


def blend(mean: float | None, new: float) -> float:
    """A running mean that forgets, and leans to the quicker."""
    return new if mean is None else mean + (QUICKER if new < mean else DEARER) * (new - mean)
