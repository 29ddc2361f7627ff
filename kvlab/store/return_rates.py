"""``ReturnRates``: how soon what was used returns, by class and age, and what keeping it is worth.

Gittins, "Bandit processes and dynamic allocation indices", JRSS B 1979; returns by class and age as in LHD (Beckmann,
Chen & Cidon, NSDI 2018). With F the share that returned by an age and S = 1 - F, the index at age a is the largest
value over h of

    (F(a + h) - F(a)) / (integral of S from a to a + h),

the hits that keeping a block until a + h brings, over the time that it is kept.
"""

from __future__ import annotations

import math

import numpy as np

AGES = 48
"""Bins of ages, half an octave each."""
PRIOR_RETURNS = 2.0
"""Returns of the average class that each class is taken to have seen; results change little from 1 to 8."""

AGE_STARTS = np.power(2.0, np.arange(AGES + 1) / 2) - 1
"""Where the bins begin."""
_WIDTHS = np.diff(AGE_STARTS)


class ReturnRates:
    """Counts returns, and the time at risk of them, by class and age.

    Args:
        kinds: how many classes there are.

    Attributes:
        returned: the returns of all classes so far.
    """

    def __init__(self, kinds: int) -> None:
        self.kinds, self.returned = kinds, 0.0
        self._returns, self._risk = np.zeros((kinds, AGES)), np.zeros((kinds, AGES))
        self._alive, self._entered = np.zeros((kinds, AGES)), np.zeros((kinds, AGES))

    def count(self, kind: int, age: int, born: int, share: float) -> None:
        """Add a share of what was born at a time to those at risk in an age bin; a negative share takes it away."""
        self._alive[kind, age] += share
        self._entered[kind, age] += share * (born + AGE_STARTS[age])

    def aged(self, kind: int, before: int, age: int, share: float) -> None:
        """Count the time at risk of a share that went through the bins from ``before`` up to ``age``."""
        self._risk[kind, before:age] += share * _WIDTHS[before:age]

    def learn(self, kind: int, age: int, share: float) -> int:
        """Count the return of a share at an age; return the age's bin."""
        at = age_bin(age)
        self.returned += share
        self._returns[kind, at] += share
        self._risk[kind, at] += share * max(0.5, age - AGE_STARTS[at])
        return at

    def ranks(self, now: int) -> dict[int, int]:
        """Return the places, ``kind * AGES + age``, with their rank by index, the least first; of equals the older."""
        risk = self._risk + np.maximum(self._alive * now - self._entered, 0.0)
        kinds = np.flatnonzero((risk.sum(1) > 0) | (np.abs(self._alive).sum(1) > 0))
        at_risk, returns = risk.sum(0), self._returns.sum(0)
        average = (returns + 1e-3) / np.maximum(at_risk, 1e-9)
        for age in np.flatnonzero(at_risk <= 0):
            average[age] = average[age - 1] if age else 1e-3
        prior = PRIOR_RETURNS
        hazard = (self._returns[kinds] + prior) / (risk[kinds] + prior / average)
        index = gittins_indices(hazard)
        places = (kinds[:, None] * AGES + np.arange(AGES)).ravel()
        ages = np.tile(np.arange(AGES), len(kinds))
        order = places[np.lexsort((-ages, index.ravel()))].tolist()
        return {place: rank for rank, place in enumerate(order)}


def gittins_indices(hazard: np.ndarray) -> np.ndarray:
    """Return the Gittins index at the start of each age bin, ``[kinds, AGES]``, of returns per request, alike."""
    index = np.empty_like(hazard)
    decay = np.exp(-hazard * _WIDTHS)
    gained = 1.0 - decay
    kept = gained / np.maximum(hazard, 1e-12)
    for age in range(AGES):
        survival = np.ones((len(hazard), AGES - age))
        survival[:, 1:] = np.cumprod(decay[:, age:-1], axis=1)
        hits = np.cumsum(survival * gained[:, age:], axis=1)
        time = np.cumsum(survival * kept[:, age:], axis=1)
        index[:, age] = (hits / np.maximum(time, 1e-12)).max(axis=1)
    return index


def age_bin(age: int) -> int:
    """Return the bin of an age."""
    return min(AGES - 1, int(2 * math.log2(age + 1)))
