"""Hit ratio by capacity: a line for each replacement policy, from the rows of ``kvlab replay``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import altair as alt
import polars as pl

from kvlab.charts.colors import GUIDE, SOFT_INK
from kvlab.charts.direct_labels import GAP, Anchor, at_line_ends, name_marks
from kvlab.charts.policy_styles import DASHES, FREE
from kvlab.charts.style import HEIGHT, WIDTH, require, styled
from kvlab.errors import RunError

METRIC = "hit_ratio_blocks"
UNLIMITED = "unlimited"
MOST_TICKS = 8
MARGIN = 1.06
"""The vertical axis ends so much above the highest ratio."""


def hit_ratio_by_capacity(rows: pl.DataFrame, curve: pl.DataFrame | None = None) -> alt.LayerChart:
    """Draw hit blocks over asked blocks against the capacity, a line a policy, on a logarithmic axis.

    Names stand at the ends of the lines. A dashed rule shows what a tier without limit hits. ``curve`` holds whole
    curves (``replace``, ``share``, ``value``), which are drawn through the points of their policies.
    """
    require(rows, "replace", "share", "metric", "value", "trace")
    data = rows.filter((pl.col("metric") == METRIC) & (pl.col("replace") != UNLIMITED))
    if data.is_empty():
        raise RunError("no hit ratios by capacity: this chart shows the rows of `kvlab replay --json`")
    data = data.select("replace", "share", "value").sort("share", maintain_order=True)
    names = rows["replace"].filter(rows["replace"] != UNLIMITED).unique(maintain_order=True).to_list()
    whole = curve if curve is not None and not curve.is_empty() else data.head(0)
    whole = whole.select("replace", "share", "value")
    if data["share"].n_unique() > 1:
        whole = whole.filter(pl.col("share").is_between(data["share"].min(), data["share"].max()))
    lines = pl.concat([data.filter(~pl.col("replace").is_in(whole["replace"].unique().to_list())), whole])
    limits = rows.filter((pl.col("metric") == METRIC) & (pl.col("replace") == UNLIMITED))["value"]
    top = MARGIN * max([*lines["value"].to_list(), *limits.to_list()]) or 1.0
    place = _Axes(lines["share"].to_list(), min(top, 1.0))
    x = alt.X(
        "share:Q",
        title="capacity, of all different blocks",
        scale=alt.Scale(type="log", domain=[place.low, place.high], nice=False),
        axis=_ticks(data["share"].unique().sort().to_list()),
    )
    y = alt.Y(
        "value:Q",
        title="hit ratio by block",
        scale=alt.Scale(domain=[0, place.top], nice=False),
        axis=alt.Axis(format="~%"),
    )
    color = alt.Color("policy:N", legend=None, scale=_colors(names))
    tooltip = ["policy:N", alt.Tooltip("share:Q", format=".2%"), alt.Tooltip("value:Q", format=".2%")]
    named = [frame.rename({"replace": "policy"}) for frame in (lines, data)]
    layers = []
    if len(limits):
        layers.append(
            alt.Chart(alt.InlineData(values=[{"value": limits[0]}]))
            .mark_rule(strokeDash=[4, 4], color=GUIDE.light)
            .encode(y=alt.Y("value:Q"))
        )
        layers.append(
            alt.Chart(alt.InlineData(values=[{"value": limits[0]}]))
            .mark_text(text="no limit", align="left", x=4, dy=-7, fontSize=11, color=SOFT_INK.light)
            .encode(y=alt.Y("value:Q"))
        )
    dash = alt.StrokeDash("policy:N", legend=None, scale=_dashes(names)) if len(names) > len(FREE) else alt.Undefined
    layers.append(alt.Chart(named[0]).mark_line(strokeWidth=2.2).encode(x=x, y=y, color=color, strokeDash=dash))
    layers.append(
        alt.Chart(named[1]).mark_point(filled=True, size=46, opacity=1).encode(x=x, y=y, color=color, tooltip=tooltip)
    )
    ends = [place.end(lines, name) for name in names]
    placed = at_line_ends(ends, WIDTH + GAP, HEIGHT)
    chart = alt.layer(*layers, *name_marks(placed, color)).properties(width=WIDTH, height=HEIGHT)
    note = ["Prefixes only: a block whose parent is not there is no hit."]
    return styled(chart, f"Hit ratio by capacity: {rows['trace'][0]}", note)


class _Axes:
    """The domain of the chart, and where values are in pixels from its upper left corner."""

    def __init__(self, shares: Sequence[float], top: float) -> None:
        self.low, self.high, self.top = min(shares), max(shares), top
        if self.low == self.high:
            self.low, self.high = self.low / 2, self.high * 2

    def end(self, lines: pl.DataFrame, name: str) -> Anchor:
        """Return the last point of a policy's line, with its name."""
        last = lines.filter(pl.col("replace") == name).sort("share").tail(1)
        across = math.log(last["share"][0] / self.low) / math.log(self.high / self.low)
        return Anchor(WIDTH * across, HEIGHT * (1 - last["value"][0] / self.top), name)


def _ticks(shares: list[float]) -> alt.Axis:
    """Return an axis with a tick at each capacity, or at round ones where they are many."""
    if 1 < len(shares) <= MOST_TICKS:
        return alt.Axis(format=".2~p", values=shares)
    return alt.Axis(format="~%", tickCount=6)


def _colors(names: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(names), range=[FREE[i % len(FREE)].light for i in range(len(names))])


def _dashes(names: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(names), range=[DASHES[i // len(FREE) % len(DASHES)] for i in range(len(names))])
