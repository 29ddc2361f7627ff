"""Codecs at equal bytes: KL on a logarithmic axis against the share of bytes, a mark and a name for each."""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, GREEN, ORANGE, RED, SOFT_INK, Tone
from kvlab.charts.direct_labels import GAP, Anchor, beside_points, name_marks
from kvlab.charts.policy_styles import SHAPES
from kvlab.charts.style import legend_of, require, styled
from kvlab.errors import RunError

WIDTH, HEIGHT = 680, 460
TONES: tuple[Tone, ...] = (ORANGE, BLUE, GREEN, RED)
"""Colours of methods, in their order; shapes differ too."""
MARGIN = 1.6
"""Factor by which the axis of KL goes on beyond the least and the greatest value."""


def kl_by_stored_bytes(summary: pl.DataFrame) -> Any:
    """Draw KL from ``full`` against the share of its bytes, with 95 % intervals: down and left is better.

    ``summary`` has the columns `method`, `label`, `share`, `kl`, `low` and `high`, one row for each codec; a KL is
    above 0. Raises RunError where there is nothing to draw, a KL of 0, or more methods than colours.
    """
    require(summary, "method", "label", "share", "kl", "low", "high")
    methods = summary["method"].unique(maintain_order=True).to_list()
    if summary.is_empty() or len(methods) > len(TONES):
        raise RunError(f"this chart draws 1 to {len(TONES)} methods, and the summary has {len(methods)}")
    lows = [float(low) for low in summary["low"]]
    if min(lows) <= 0:
        raise RunError("a KL of 0 has no place on a logarithmic axis: leave that policy out")
    bottom, top = min(lows) / MARGIN, max(float(high) for high in summary["high"]) * MARGIN
    right = min(1.0, 1.08 * max(float(share) for share in summary["share"]))

    def across(share: float) -> float:
        return WIDTH * share / right

    def up(kl: float) -> float:
        return HEIGHT * (1 - math.log(kl / bottom) / math.log(top / bottom))

    color = alt.Color(
        "method:N", title=None, legend=legend_of(methods, points=True),
        scale=alt.Scale(domain=methods, range=[tone.light for tone in TONES[: len(methods)]]),
    )  # fmt: skip
    shape = alt.Shape(
        "method:N", title=None, legend=legend_of(methods, points=True),
        scale=alt.Scale(domain=methods, range=list(SHAPES[: len(methods)])),
    )  # fmt: skip
    height: dict[str, Any] = {
        "title": "KL from full (nats, logarithmic)",
        "scale": alt.Scale(type="log", domain=[bottom, top], nice=False),
        "axis": alt.Axis(values=[10.0**power for power in range(-6, 3) if bottom <= 10.0**power <= top], format="~g"),
    }
    base = alt.Chart(summary).encode(
        x=alt.X(
            "share:Q", title="bytes of K and V, of those of full in 16 bits", axis=alt.Axis(format="%"),
            scale=alt.Scale(domain=[0, right], nice=False),
        ),
        tooltip=[
            alt.Tooltip("label:N"),
            alt.Tooltip("share:Q", format=".1%"),
            alt.Tooltip("kl:Q", format=".3g"),
            alt.Tooltip("low:Q", format=".3g"),
            alt.Tooltip("high:Q", format=".3g"),
        ],
    )  # fmt: skip
    bars = base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(y=alt.Y("low:Q", **height), y2="high:Q", color=color)
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        y=alt.Y("kl:Q", **height), color=color, shape=shape
    )
    anchors, blocked = [], []
    for label, share, kl, low, high in summary.select("label", "share", "kl", "low", "high").iter_rows():
        anchors.append(Anchor(across(share), up(kl), label))
        blocked.append((across(share) - GAP / 4, up(high), across(share) + GAP / 4, up(low)))
    names = name_marks(beside_points(anchors, WIDTH, HEIGHT, blocked=blocked), alt.value(SOFT_INK.light))
    note = ["Down and left is better. Bars: 95 % confidence, by bootstrap over the texts."]
    chart = alt.layer(bars, points, *names).properties(width=WIDTH, height=HEIGHT)
    return styled(chart, "KL of codecs by their bytes", note)
