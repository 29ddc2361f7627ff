"""How many prompt tokens to compute between two decode steps: by time, so that a long prompt freezes nobody."""

from __future__ import annotations

STRETCH = 2.2
"""Prefill time granted per decode step, in decode steps: others then see gaps of three steps, and the prefill two
thirds of the machine."""
LEAST = 4
"""Fewest tokens a chunk, or the fixed cost of a forward pass would rule."""
FIRST = 128
"""Tokens a chunk until both rates are known."""
MEMORY = 0.3
"""Weight of the newest measurement in the running means."""


class Pace:
    """Sizes prefill chunks from the rates seen so far. Alone, a prompt gets chunks of ``most`` tokens."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._step_s: float | None = None
        self._tokens_per_s: float | None = None

    def chunk(self, prefilling: int, decoding: int) -> int:
        """Tokens for each of ``prefilling`` prompts before the ``decoding`` sequences get their next token."""
        if not decoding:
            return self.most
        if self._step_s is None or self._tokens_per_s is None:
            return min(FIRST, self.most)
        tokens = STRETCH * self._step_s * self._tokens_per_s / max(1, prefilling)
        return max(min(LEAST, self.most), min(self.most, int(tokens)))

    def saw(self, seconds: float, prefilled: int, decoded: int) -> None:
        """A round took ``seconds``, computed ``prefilled`` prompt tokens and gave ``decoded`` sequences a token."""
        if prefilled:
            spent = max(seconds - (self._step_s or 0.0 if decoded else 0.0), seconds / 10)
            self._tokens_per_s = blend(self._tokens_per_s, prefilled / spent)
        elif decoded:
            self._step_s = blend(self._step_s, seconds)


def blend(mean: float | None, new: float) -> float:
    """A running mean that forgets."""
    return new if mean is None else mean + MEMORY * (new - mean)
