"""Count, for each item of a sequence, the weight of earlier items with a greater value: in O(n log n), vectorised."""

from __future__ import annotations

import numpy as np


def earlier_and_greater(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the summed weights of the items before each item whose value is greater, int64 ``[n]``.

    Items are divided by the bits of their values, from the highest on, as in a wavelet tree: two items part at the
    highest bit in which they differ, and there the later one with a 0 counts the earlier ones with a 1.

    Args:
        values: non-negative integers ``[n]``.
        weights: int64 ``[n]``.
    """
    n = len(values)
    counted = np.zeros(n, np.int64)
    if n == 0:
        return counted
    order = np.arange(n)
    ordered, weight = values.astype(np.int64), weights.astype(np.int64)
    group = np.zeros(n, np.int64)  # where the items begin that agree in all higher bits
    for bit in range(int(values.max()).bit_length() - 1, -1, -1):
        ones = (ordered >> bit) & 1
        sums = np.concatenate([[0], np.cumsum(ones * weight)])
        zeros = ones == 0
        counted[order[zeros]] += sums[:-1][zeros] - sums[group[zeros]]
        # A stable partition of every group: zeros keep their order at its front, ones behind them.
        before = np.concatenate([[0], np.cumsum(zeros)])
        ends = _group_ends(group)
        in_group = before[ends] - before[group]
        place = np.arange(n)
        zeros_before = before[:-1] - before[group]
        target = np.where(zeros, group + zeros_before, group + in_group + (place - group - zeros_before))
        group = np.where(zeros, group, group + in_group)
        order, ordered, weight, group = (_moved(one, target) for one in (order, ordered, weight, group))
    return counted


def _group_ends(group: np.ndarray) -> np.ndarray:
    """Return for every place where its group ends; ``group`` holds where it starts."""
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(group)]]))
    return np.repeat(starts + sizes, sizes)


def _moved(items: np.ndarray, target: np.ndarray) -> np.ndarray:
    made = np.empty_like(items)
    made[target] = items
    return made
