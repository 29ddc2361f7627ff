"""Quality against bytes with the Pareto line: what no other policy beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import altair as alt
import polars as pl

from kvlab.charts.direct_labels import Anchor, beside_points, name_marks
from kvlab.charts.style import GREY, Look, require, styled
from kvlab.errors import RunError

WIDTH, HEIGHT = 640, 320
MAX_NAMES = 3
"""Policies that a label names where several lie on one point."""
AXIS_PX = 80
SAME_PLACE_PX = 6
"""Points nearer than this, across and up, cover each other."""
MIN_LOG_RANGE = 30
"""From this ratio of the most to the least bytes on, the axis is logarithmic."""
LOWER_IS_BETTER = frozenset({"kl", "perplexity"})
TITLES: Mapping[str, str] = {
    "accuracy": "right answers",
    "kl": "KL from the uncached model (nats)",
    "top1": "best token equal to full's",
    "exact": "answers equal token for token",
    "equal_call": "calls equal to full's",
}


@dataclass(frozen=True)
class ParetoPoint:
    """A policy's live KV in MB and its quality; whether no other policy has less KV and as good a quality or better."""

    policy: str
    megabytes: float
    quality: float
    on_line: bool


def pareto_points(rows: pl.DataFrame, metric: str = "accuracy") -> list[ParetoPoint]:
    """Return a point for each policy with mean live KV at its last turn and the mean of the metric, in their order.

    Raises RunError where the rows have not both.
    """
    require(rows, "policy", "metric", "value", "turn")
    live = rows.filter((pl.col("metric") == "kv_bytes_live") & pl.col("turn").is_not_null())
    held = (
        live.filter(pl.col("turn") == pl.col("turn").max().over("policy"))
        .group_by("policy", maintain_order=True)
        .agg((pl.col("value").mean() / 1e6).alias("megabytes"))
    )
    counting = rows.filter(pl.col("void").is_null()) if "void" in rows.columns else rows
    if "position" in rows.columns:
        counting = counting.filter(pl.col("position").is_null())  # those are of all sequences together
    quality = (
        counting.filter(pl.col("metric") == metric).group_by("policy").agg(pl.col("value").mean().alias("quality"))
    )
    both = held.join(quality, on="policy", maintain_order="left")
    if both.is_empty():
        raise RunError(f"these rows have no {metric} beside kv_bytes_live of one policy")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    found: list[tuple[str, float, float]] = list(both.select("policy", "megabytes", "quality").iter_rows())
    return [ParetoPoint(*one, on_line=not any(_beats(other, one, sign) for other in found)) for one in found]


def _beats(other: tuple[str, float, float], one: tuple[str, float, float], sign: int) -> bool:
    less, better = other[1] <= one[1], sign * other[2] >= sign * one[2]
    return less and better and (other[1] < one[1] or sign * other[2] > sign * one[2])


def quality_with_pareto(
    rows: pl.DataFrame, metric: str = "accuracy", *, among: Sequence[str] | None = None
) -> alt.LayerChart:
    """Draw quality against live KV: full points on the Pareto line, hollow ones that another policy beats in both.

    Names stand beside the points; equal points share one.
    """
    points = pareto_points(rows, metric)
    look = Look(pl.DataFrame({"policy": [point.policy for point in points]}), among)
    share = metric not in LOWER_IS_BETTER
    place = _Place.of(points, share)
    x = alt.X(
        "megabytes:Q",
        title="live KV of a sequence (MB)",
        scale=alt.Scale(domain=list(place.x_domain), type="log" if place.logarithmic else "linear", nice=False),
        axis=alt.Axis(format="~g", tickCount=8),
    )
    y = alt.Y(
        "quality:Q",
        title=TITLES.get(metric, metric),
        scale=alt.Scale(domain=list(place.y_domain), nice=False),
        axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]) if share else alt.Axis(format="~g", tickCount=5),
    )
    base = alt.Chart(look.labelled(pl.DataFrame([vars(point) for point in points]))).encode(x=x, y=y)
    line = (
        base.transform_filter("datum.on_line")
        .mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1.6, color=GREY)
        .encode(order="megabytes:Q")
    )
    tooltip = [
        alt.Tooltip("policy:N"),
        alt.Tooltip("megabytes:Q", title="live KV (MB)", format=".3f"),
        alt.Tooltip("quality:Q", title=metric, format=".3f"),
    ]
    drawn = [
        base.transform_filter("datum.on_line" if on_line else "!datum.on_line")
        .mark_point(filled=on_line, size=110, strokeWidth=2.4, opacity=1)
        .encode(color=look.color(legend=False), tooltip=tooltip, **look.shape(legend=False))
        for on_line in (False, True)
    ]
    placed = beside_points(place.anchors(points, look), WIDTH, HEIGHT, blocked=list(place.blocked_boxes(points)))
    chart = alt.layer(line, *drawn, *name_marks(placed, look.color(legend=False)))
    better = "Up and left is better" if share else "Down and left is better"
    note = [f"{better}. Full points, dashed line: no other policy has less KV and is as good. Hollow: beaten in both."]
    title = f"Quality against bytes: {TITLES.get(metric, metric)}"
    return styled(chart.properties(width=WIDTH, height=HEIGHT), title, note)


@dataclass(frozen=True)
class _Place:
    """The axes of the chart, and where points are in pixels from its upper left corner."""

    x_domain: tuple[float, float]
    y_domain: tuple[float, float]
    logarithmic: bool

    @classmethod
    def of(cls, points: list[ParetoPoint], share: bool) -> _Place:
        least, most = min(p.megabytes for p in points), max(p.megabytes for p in points)
        logarithmic = least > 0 and most / least >= MIN_LOG_RANGE
        top = 1.08 if share else 1.12 * max(point.quality for point in points) or 1.0
        x_domain = (least / 1.6, most * 1.6) if logarithmic else (0.0, 1.06 * most or 1.0)
        return cls(x_domain, (0.0, top), logarithmic)

    def pixels(self, point: ParetoPoint) -> tuple[float, float]:
        (low, high), (bottom, top) = self.x_domain, self.y_domain
        if self.logarithmic:
            across = math.log(point.megabytes / low) / math.log(high / low)
        else:
            across = (point.megabytes - low) / (high - low)
        return WIDTH * across, HEIGHT * (1 - (point.quality - bottom) / (top - bottom))

    def anchors(self, points: list[ParetoPoint], look: Look) -> list[Anchor]:
        """Return the names with their places, one for all points on one place."""
        groups: dict[tuple[int, int], list[ParetoPoint]] = {}
        for point in points:
            x, y = self.pixels(point)
            groups.setdefault((round(x / SAME_PLACE_PX), round(y / SAME_PLACE_PX)), []).append(point)
        anchors = []
        for group in groups.values():
            names = [look.styles[point.policy].label for point in group]
            more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            anchors.append(Anchor(*self.pixels(group[0]), ", ".join(names[:MAX_NAMES]) + more))
        return anchors

    def blocked_boxes(self, points: list[ParetoPoint]) -> Iterator[tuple[float, float, float, float]]:
        """Yield what names keep off: the axis at the left, and the steps of the Pareto line."""
        yield -AXIS_PX, 0, 2, HEIGHT
        line = sorted(self.pixels(point) for point in points if point.on_line)
        for (x0, y0), (x1, y1) in pairwise(line):
            yield x0, y0 - 2, x1, y0 + 2
            yield x1 - 2, min(y0, y1), x1 + 2, max(y0, y1)
