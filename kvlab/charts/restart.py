"""The cost of a restart: the first turn of a new process, the same turn without restart, and without cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import INK, PAGE
from kvlab.charts.style import AXIS_LABEL_PX, WIDTH, Look, require, styled
from kvlab.errors import RunError


def ttft_after_restart(rows: pl.DataFrame, *, among: Sequence[str] | None = None) -> Any:
    """Draw the median TTFT of the first turn after the restart, as bars with a point for each repeat.

    `full`, which has nothing to lose, is shown by the same turn of a process that continued.
    """
    require(rows, "policy", "metric", "turn", "phase", "value")
    data = rows.filter((pl.col("metric") == "ttft_ms") & pl.col("turn").is_not_null())
    turns = data.filter(pl.col("phase") == "restart")["turn"].unique()
    if turns.is_empty():
        raise RunError("no turn after a restart: run the experiment with restart = true and another policy than full")
    data = data.filter(pl.col("turn").is_in(turns.to_list()))
    after = pl.when(pl.col("phase") == "restart").then(pl.lit("new process")).otherwise(pl.lit("same process"))
    look = Look(data, among)
    data = look.labelled(data).with_columns(pl.format("{}, {}", "policy", after).alias("who"))
    means = data.group_by("who", "policy", maintain_order=True).agg(
        pl.col("value").median(), pl.col("value").min().alias("low"), pl.col("value").max().alias("high")
    )
    order = means["who"].to_list()
    scale = alt.Scale(zero=True, nice=True)
    y = alt.Y("who:N", title=None, sort=order, axis=alt.Axis(labelLimit=AXIS_LABEL_PX))
    x = alt.X("value:Q", title="time to first token (ms)", scale=scale)
    bars = (
        alt.Chart(means)
        .mark_bar(size=20)
        .encode(x=x, y=y, color=look.color(legend=False), tooltip=["who:N", alt.Tooltip("value:Q", format=",.1f")])
    )
    spans = (
        alt.Chart(means)
        .mark_rule(strokeWidth=1.5, color=INK.light)
        .encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y)
    )
    points = (
        alt.Chart(data)
        .mark_point(size=30, filled=True, fill=INK.light, stroke=PAGE.light, strokeWidth=0.8, opacity=1)
        .encode(x=x, y=y)
    )
    texts = (
        alt.Chart(means.with_columns(pl.col("value").round(0).cast(pl.Int64).alias("shown")))
        .mark_text(align="left", dx=10, fontSize=11, color=INK.light)
        .encode(x=alt.X("high:Q", scale=scale), y=y, text=alt.Text("shown:Q", format=",d"))
    )
    chart = alt.layer(bars, spans, points, texts).properties(
        width=WIDTH, height=(52 if len(order) <= 5 else 32) * max(2, len(order))
    )
    note = [f"Turn {', '.join(map(str, sorted(turns)))}; bars: median, points: repeats."]
    return styled(chart, "Time to first token after a restart", note)
