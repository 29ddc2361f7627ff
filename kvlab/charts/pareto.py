"""Quality against bytes with the Pareto line: what no other policy beats in both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import policy_colors
from kvlab.charts.style import GREY, require, styled
from kvlab.errors import RunError

WIDTH, HEIGHT = 640, 320
MAX_NAMES = 3
"""Policies that a label names where several lie on one point."""
MIN_LOG_RANGE = 30
"""From this ratio of the most to the least bytes on, the axis is logarithmic."""
CHAR_PX, LINE_PX, GAP_PX = 6.1, 13.0, 9.0
"""Size of a label's letters, of its line, and its distance from the point, in pixels."""
LEVELS_PX = (0, *(sign * LINE_PX * 1.1 * level for level in range(1, 11) for sign in (-1, 1)))
"""Heights above and below a point at which its label may stand, the nearest first."""
INK = "#444"
LOWER_IS_BETTER = frozenset({"kl", "perplexity"})
TITLES: Mapping[str, str] = {
    "accuracy": "right answers",
    "kl": "KL from the uncached model (nats)",
    "top1": "best token equal to full's",
    "exact": "answers equal token for token",
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
    rows: pl.DataFrame, metric: str = "accuracy", *, labels: Mapping[str, str] | None = None
) -> alt.LayerChart:
    """Draw quality against live KV: full points on the Pareto line, hollow ones that another policy beats in both.

    `labels` has the short names of policies; equal points share a label.
    """
    points = pareto_points(rows, metric)
    share = metric not in LOWER_IS_BETTER
    x_domain, logarithmic = _bytes_domain(points)
    top = max(point.quality for point in points)
    y_domain = (0.0, 1.08) if share else (0.0, 1.12 * top or 1.0)
    place = _Placement(x_domain, y_domain, logarithmic)
    colors = policy_colors([point.policy for point in points])
    x = alt.X(
        "megabytes:Q",
        title="live KV of a sequence (MB)",
        scale=alt.Scale(domain=list(x_domain), type="log" if logarithmic else "linear", nice=False),
        axis=alt.Axis(format="~g"),
    )
    y = alt.Y(
        "quality:Q",
        title=TITLES.get(metric, metric),
        scale=alt.Scale(domain=list(y_domain), nice=False),
        axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]) if share else alt.Axis(format="~g"),
    )
    data = pl.DataFrame([{**vars(point), "color": colors[point.policy]} for point in points])
    base = alt.Chart(data).encode(x=x, y=y)
    line = (
        base.transform_filter("datum.on_line")
        .mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1.6, color=GREY)
        .encode(order="megabytes:Q")
    )
    shape: dict[str, Any] = {"size": 110, "strokeWidth": 2.4, "opacity": 1}
    tips = [
        alt.Tooltip("policy:N"),
        alt.Tooltip("megabytes:Q", title="live KV (MB)", format=".3f"),
        alt.Tooltip("quality:Q", title=metric, format=".3f"),
    ]
    color = alt.Color("policy:N", legend=None, scale=alt.Scale(domain=list(colors), range=list(colors.values())))
    full = base.transform_filter("datum.on_line").mark_point(filled=True, **shape).encode(color=color, tooltip=tips)
    hollow = base.transform_filter("!datum.on_line").mark_point(filled=False, **shape).encode(color=color, tooltip=tips)
    named = pl.DataFrame(list(place.labels(points, labels or {})))
    leaders = (
        alt.Chart(named.filter(pl.col("moved")))
        .mark_rule(color=GREY, strokeWidth=0.8)
        .encode(x=x, y=y, x2="label_x:Q", y2="label_y:Q")
    )
    texts = [
        alt.Chart(named.filter(pl.col("align") == align))
        .mark_text(align=align, baseline="middle", fontSize=11, color=INK)
        .encode(x=alt.X("label_x:Q"), y=alt.Y("label_y:Q"), text="text:N")
        for align in ("left", "right")
        if (named["align"] == align).any()
    ]
    chart = alt.layer(line, leaders, hollow, full, *texts).properties(width=WIDTH, height=HEIGHT)
    better = "Up and left is better" if share else "Down and left is better"
    note = [f"{better}. Full points, dashed line: no other policy has less KV and is as good. Hollow: beaten in both."]
    return styled(chart, f"Quality against bytes: {TITLES.get(metric, metric)}", note)


def _bytes_domain(points: list[ParetoPoint]) -> tuple[tuple[float, float], bool]:
    least, most = min(p.megabytes for p in points), max(p.megabytes for p in points)
    if least > 0 and most / least >= MIN_LOG_RANGE:
        return (least / 1.6, most * 1.6), True
    return (0.0, 1.06 * most or 1.0), False


@dataclass
class _Placement:
    """Places labels beside their points so that none covers another, in pixels from the lower left corner."""

    x_domain: tuple[float, float]
    y_domain: tuple[float, float]
    logarithmic: bool

    def labels(self, points: list[ParetoPoint], names: Mapping[str, str]) -> list[dict[str, Any]]:
        groups: dict[tuple[int, int], list[ParetoPoint]] = {}
        for point in points:  # points that cover each other share a label
            x, y = self._pixels(point)
            groups.setdefault((round(x / 6), round(y / 6)), []).append(point)
        taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in map(self._pixels, points)] + list(self._steps(points))
        return [self._label(group, names, taken) for group in groups.values()]

    def _label(
        self, group: list[ParetoPoint], names: Mapping[str, str], taken: list[tuple[float, float, float, float]]
    ) -> dict[str, Any]:
        shown = [names.get(point.policy, point.policy) for point in group]
        text = ", ".join(shown[:MAX_NAMES]) + (f" and {len(shown) - MAX_NAMES} more" if len(shown) > MAX_NAMES else "")
        x, y = self._pixels(group[0])
        width = CHAR_PX * len(text)
        right = [(GAP_PX, dy, "left") for dy in LEVELS_PX]
        left = [(-GAP_PX, dy, "right") for _, dy, _ in right]
        options = [o for pair in zip(right, left, strict=True) for o in pair]
        best, cost = options[0], math.inf
        for option in options:
            box = self._box(x, y, option, width)
            overlap = sum(_overlap(box, other) for other in taken) + 40 * self._outside(box)
            if overlap < cost:
                best, cost = option, overlap
            if cost == 0:
                break
        taken.append(self._box(x, y, best, width))
        dx, dy, align = best
        at = {"megabytes": group[0].megabytes, "quality": group[0].quality, "text": text, "align": align}
        return at | {"label_x": self._x(x + dx), "label_y": self._y(y + dy), "moved": abs(dy) > 14}

    def _steps(self, points: list[ParetoPoint]) -> Iterator[tuple[float, float, float, float]]:
        """Yield thin boxes around the Pareto line."""
        line = sorted(self._pixels(point) for point in points if point.on_line)
        for (x0, y0), (x1, y1) in pairwise(line):
            yield x0, y0 - 2, x1, y0 + 2
            yield x1 - 2, min(y0, y1), x1 + 2, max(y0, y1)

    def _pixels(self, point: ParetoPoint) -> tuple[float, float]:
        (low, high), (bottom, top) = self.x_domain, self.y_domain
        share = (
            math.log(point.megabytes / low) / math.log(high / low)
            if self.logarithmic
            else (point.megabytes - low) / (high - low)
        )
        return WIDTH * share, HEIGHT * (point.quality - bottom) / (top - bottom)

    def _x(self, pixels: float) -> float:
        low, high = self.x_domain
        share = pixels / WIDTH
        return float(low * (high / low) ** share) if self.logarithmic else low + share * (high - low)

    def _y(self, pixels: float) -> float:
        bottom, top = self.y_domain
        return bottom + pixels / HEIGHT * (top - bottom)

    @staticmethod
    def _box(x: float, y: float, option: tuple[float, float, str], width: float) -> tuple[float, float, float, float]:
        dx, dy, align = option
        start = x + dx if align == "left" else x + dx - width
        return start, y + dy - LINE_PX / 2, start + width, y + dy + LINE_PX / 2

    @staticmethod
    def _outside(box: tuple[float, float, float, float]) -> float:
        return max(0.0, -box[0]) + max(0.0, box[2] - WIDTH) + max(0.0, -box[1]) + max(0.0, box[3] - HEIGHT)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return wide * high if wide > 0 and high > 0 else 0.0
