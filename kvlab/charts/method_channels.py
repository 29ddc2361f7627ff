"""Methods in charts that draw a line a method: the colour, dash and shape of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.policy_styles import DASHES, SHAPES, PolicyStyle
from kvlab.charts.style import legend_of


def method_channels(policies: pl.DataFrame, styles: Mapping[str, PolicyStyle]) -> dict[str, Any]:
    """Return the channels of the column `method`: a method has the colour of the first of its policies.

    ``policies`` has the columns `policy` and `method`. Dash and shape are there where methods share a colour; those
    methods have different ones.
    """
    colors: dict[str, str] = {}
    for policy, method in policies.select("policy", "method").iter_rows():
        colors.setdefault(method, styles[policy].color)
    used: Counter[str] = Counter()
    variants = {}
    for method, color in colors.items():
        variants[method] = used[color] % len(DASHES)
        used[color] += 1
    looks: dict[str, tuple[Any, list[Any], bool]] = {"color": (alt.Color, list(colors.values()), False)}
    if any(variants.values()):
        looks["strokeDash"] = (alt.StrokeDash, [DASHES[one] for one in variants.values()], False)
        looks["shape"] = (alt.Shape, [SHAPES[one] for one in variants.values()], True)
    order = list(colors)
    return {
        name: channel(
            "method:N", title=None, sort=order, scale=alt.Scale(domain=order, range=values),
            legend=legend_of(order, points=points),
        )
        for name, (channel, values, points) in looks.items()
    }  # fmt: skip


def of_lines(channels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the channels that a line has: no shape."""
    return {name: channel for name, channel in channels.items() if name != "shape"}


def of_points(channels: Mapping[str, Any]) -> dict[str, Any]:
    """Return the channels that a point has: no dash."""
    return {name: channel for name, channel in channels.items() if name != "strokeDash"}
