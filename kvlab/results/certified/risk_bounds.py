"""Bounds of a mean loss in [0, 1] that hold for a finite number of items."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

BISECTIONS = 60
"""Halvings of [0, 1] that find a bound to the last digit of a float."""


def p_value(losses: np.ndarray, bound: float, level: float) -> float:
    """Return the probability of losses as small as these, or more, where their expected value is ``bound`` or above.

    Exact for losses of 0 and 1 (binomial); else one over the greatest wealth of a bettor against the bound, who stakes
    by the mean and variance so far (Waudby-Smith and Ramdas, as Bates et al. use them: Distribution-Free,
    Risk-Controlling Prediction Sets, 2021, proposition 5). ``losses`` is float ``[items]``, in the order in which they
    were drawn; ``level`` is the p-value that is aimed at, which decides the stakes.
    """
    if bound >= 1.0:
        return 0.0
    if np.isin(losses, (0.0, 1.0)).all():
        return binomial_tail(len(losses), round(float(losses.sum())), bound)
    stakes = _stakes(losses, level)
    wealth = np.cumsum(np.log1p(stakes * (bound - losses)))
    return float(min(1.0, np.exp(-wealth.max())))


def upper_bound(losses: np.ndarray, level: float) -> float:
    """Return the value below which the expected loss is, but for this probability: where :func:`p_value` is ``level``.

    For losses of 0 and 1 it is the one-sided bound of Clopper and Pearson.
    """
    return _first(lambda bound: p_value(losses, bound, level) <= level)


def expected_bound(losses: np.ndarray) -> float:
    """Return the bound of the loss of one further item that is expected: conformal risk control (Angelopoulos 2022).

    It is ``(sum + 1) / (items + 1)``: the further item is taken to lose all. Losses of the candidates must not fall
    as budgets shrink (`certificate.py` makes them so).
    """
    return (float(losses.sum()) + 1.0) / (len(losses) + 1)


def least_items(bound: float, confidence: float | None) -> int:
    """Return how many items are needed at least: with fewer, no policy holds, not even one that loses nothing."""
    if confidence is None:
        return max(1, math.ceil(1.0 / bound - 1.0 - 1e-9))
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - bound) - 1e-9)


def binomial_tail(items: int, most: int, rate: float) -> float:
    """Return the probability of ``most`` or fewer events among ``items``, each with the probability ``rate``."""
    if most >= items or rate <= 0.0:
        return 1.0
    if rate >= 1.0:
        return 0.0
    one, other = math.log(rate), math.log1p(-rate)
    whole = math.lgamma(items + 1)
    logs = [
        whole - math.lgamma(k + 1) - math.lgamma(items - k + 1) + k * one + (items - k) * other for k in range(most + 1)
    ]
    highest = max(logs)
    return min(1.0, math.exp(highest) * math.fsum(math.exp(one - highest) for one in logs))


def _stakes(losses: np.ndarray, level: float) -> np.ndarray:
    """Return what is staked on each loss, by the losses before it, float64 ``[items]``, at most 1 - 1e-9."""
    count = np.arange(1, len(losses) + 1)
    means = (0.5 + np.cumsum(losses)) / (count + 1)
    variances = (0.25 + np.cumsum((losses - means) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    return np.minimum(1.0 - 1e-9, np.sqrt(2 * np.log(1 / level) / (len(losses) * before)))


def _first(holds: Callable[[float], bool]) -> float:
    """Return the smallest value in [0, 1] for which a condition holds that holds for all larger ones too."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
