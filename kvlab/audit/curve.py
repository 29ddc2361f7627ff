"""``ColdCurve``: how long a server takes for a prompt that it has never seen, and what a shorter time says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_SIZES = 3
"""Different prompt lengths that a curve needs: it has up to three unknowns."""

NORMAL_SD_PER_MAD = 1.4826


@dataclass(frozen=True)
class CachedEstimate:
    """Cached tokens inferred from a TTFT, and one standard error of them, both in prompt tokens."""

    tokens: float
    error: float


@dataclass(frozen=True)
class ColdCurve:
    """TTFT in seconds of ``n`` prompt tokens, none of them cached: ``base + linear * n + quadratic * n**2``.

    ``base`` is what every request costs; ``quadratic`` is attention. ``spread`` is one standard deviation of a
    measured TTFT around the curve, as a share of it. ``samples`` were fitted: prompt tokens and TTFT in seconds.
    """

    base: float
    linear: float
    quadratic: float
    spread: float
    samples: tuple[tuple[int, float], ...] = ()

    @classmethod
    def fit(cls, samples: Sequence[tuple[int, float]]) -> ColdCurve:
        """Fit the curve to cold (prompt tokens, TTFT) pairs: least squares of relative errors over the median at each
        length, so that one slow answer among three of a length changes nothing.

        Raises ValueError for fewer than three lengths.
        """
        lengths = sorted({n for n, _ in samples})
        if len(lengths) < MIN_SIZES:
            raise ValueError(f"a curve needs prompts of {MIN_SIZES} lengths, not of {len(lengths)}")
        times = [float(np.median([t for n, t in samples if n == length])) for length in lengths]
        base, linear, quadratic = _non_negative(np.array(lengths, float), np.array(times))
        fitted = cls(base, linear, quadratic, 0.0)
        off = [abs(t / fitted.ttft(n) - 1) for n, t in samples]
        return cls(base, linear, quadratic, NORMAL_SD_PER_MAD * float(np.median(off)), tuple(samples))

    def ttft(self, tokens: float) -> float:
        """Return the seconds to the first token of a cold prompt."""
        return self.base + self._work(tokens)

    def cached(self, prompt_tokens: int, ttft_s: float) -> CachedEstimate:
        """Infer how many of ``prompt_tokens`` were not recomputed, given the TTFT.

        A token's cost grows with its position, so the first ``m`` tokens cost ``work(m)``; what was not spent of the
        whole work is theirs.
        """
        saved = self._work(prompt_tokens) - (ttft_s - self.base)
        tokens = min(max(self._length(saved), 0.0), float(prompt_tokens))
        per_token = self.linear + 2 * self.quadratic * tokens
        return CachedEstimate(tokens, self.spread * ttft_s / per_token if per_token > 0 else float(prompt_tokens))

    def _work(self, tokens: float) -> float:
        return self.linear * tokens + self.quadratic * tokens**2

    def _length(self, work: float) -> float:
        """Return the length whose work is ``work`` seconds."""
        if work <= 0:
            return 0.0
        if self.quadratic <= 0:
            return work / self.linear if self.linear > 0 else 0.0
        root = (self.linear**2 + 4 * self.quadratic * work) ** 0.5
        return float((root - self.linear) / (2 * self.quadratic))


def _non_negative(lengths: np.ndarray, times: np.ndarray) -> tuple[float, float, float]:
    """Return base, linear and quadratic, none below zero: the best fit among those that leave terms out."""
    powers = np.stack([np.ones_like(lengths), lengths, lengths**2], axis=1) / times[:, None]
    best, least = (float(times.min()), 0.0, 0.0), float("inf")
    for terms in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (1,), (2,)):
        chosen = powers[:, terms]
        found, *_ = np.linalg.lstsq(chosen, np.ones_like(times), rcond=None)
        error = float(((chosen @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < least - 1e-12:
            full = np.zeros(3)
            full[list(terms)] = found
            best, least = (float(full[0]), float(full[1]), float(full[2])), error
    return best
