"""Means with confidence intervals, by bootstrap over the items that were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95
"""Share of draws within an interval."""
RULE_OF_THREE = 3.0
"""Where none of n items shows an event, its rate is below 3 / n with 95 % confidence."""


@dataclass(frozen=True)
class Interval:
    """A mean over items and the bounds of its confidence interval."""

    mean: float
    low: float
    high: float
    items: int


def bootstrap(values: Sequence[float], items: Sequence[str], *, share: bool = False) -> Interval:
    """Return the mean of ``values`` with a 95 % interval; whole items are drawn, with all values of each.

    The values of one item, such as the answers of a conversation, depend on each other. Draws are the same at every
    call. ``share`` says that values are shares in [0, 1]: where all are 0 (or all 1), every draw is the same, and the
    bound is 3 / items away (rule of three).
    """
    amounts = np.asarray(values, dtype=np.float64)
    _, groups = np.unique(np.asarray(items, dtype=str), return_inverse=True)
    sums, counts = np.bincount(groups, amounts), np.bincount(groups).astype(np.float64)
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(amounts.mean())
    if share and mean in (0.0, 1.0):
        room = min(1.0, RULE_OF_THREE / len(sums))
        low, high = max(0.0, mean - room), min(1.0, mean + room)
    return Interval(mean, float(low), float(high), len(sums))
