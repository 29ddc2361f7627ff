"""Bounds of a mean loss in [0, 1] that hold for a finite number of items."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

BISECTIONS = 60
"""Halvings of [0, 1] that find a bound to the last digit of a float."""


def p_value(losses: np.ndarray, bound: float) -> float:
    """Return the greatest probability of losses as small as these where their expected value is above ``bound``.

    Exact for losses of 0 and 1 (binomial); else the smaller of the bounds of Hoeffding and of Bentkus, as Bates et al.
    use them (Distribution-Free, Risk-Controlling Prediction Sets, 2021, equation 9). ``losses`` is float ``[items]``.
    """
    items, total = len(losses), float(losses.sum())
    if bound >= 1.0:
        return 0.0
    if np.isin(losses, (0.0, 1.0)).all():
        return binomial_tail(items, round(total), bound)
    mean = total / items
    if mean >= bound:
        return 1.0
    bentkus = math.e * binomial_tail(items, math.ceil(total - 1e-9), bound)
    return min(1.0, math.exp(-items * _divergence(mean, bound)), bentkus)


def upper_bound(losses: np.ndarray, confidence: float) -> float:
    """Return the value below which the expected loss is with this confidence: where :func:`p_value` is 1 - confidence.

    For losses of 0 and 1 it is the one-sided bound of Clopper and Pearson.
    """
    return _first(lambda bound: p_value(losses, bound) <= 1.0 - confidence)


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


def _divergence(mean: float, bound: float) -> float:
    """Return the KL divergence of a coin with the rate ``bound`` from one with the rate ``mean``, in nats."""
    rest = 0.0 if mean == 0.0 else mean * math.log(mean / bound)
    return rest + (1.0 - mean) * math.log((1.0 - mean) / (1.0 - bound))


def _first(holds: Callable[[float], bool]) -> float:
    """Return the smallest value in [0, 1] for which a condition holds that holds for all larger ones too."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
