"""Axes of counts: turns, requests, steps, positions. Their ticks are whole numbers, each of which stands there once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import altair as alt


def whole_ticks(values: Iterable[float], most: int = 15) -> list[int]:
    """Return whole numbers from the least to the greatest value, at equal distances, `most` of them or fewer."""
    found = [value for value in values if value is not None]
    if not found:
        return []
    low, high = math.ceil(min(found)), math.floor(max(found))
    step = next(step for step in _steps() if (high - low) / step < most)
    first = low if step == 1 else -(-low // step) * step
    return list(range(first, high + 1, step))


def count_axis(values: Iterable[float], most: int = 15, **more: Any) -> alt.Axis:
    """Return an axis for these counts.

    The ticks are given one by one: Vega-Lite forgets the least distance of ticks where it joins the axes of layers.
    """
    return alt.Axis(values=whole_ticks(values, most), format=",d", **more)


def _steps() -> Iterable[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10
