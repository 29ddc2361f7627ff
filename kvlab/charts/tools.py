"""Teacher-forced workloads: what a policy breaks in tool calls, and its distance from the uncached model by place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import SOFT_INK
from kvlab.charts.style import AXIS_LABEL_PX, Look, require, styled
from kvlab.errors import RunError

PANELS = ("name flips", "argument flips", "equal calls", "prose KL", "prose flips")
"""The measures that are drawn, from left to right, where they are there: first those that every source has."""
KL_TICKS = [0, 0.001, 0.01, 0.1, 1, 10]
PANEL_WIDTH, ROW_HEIGHT = 150, 24


def tools_by_policy(summary: pl.DataFrame, *, among: Sequence[str] | None = None) -> Any:
    """Draw a panel for each measure and a line for each policy: a point with its confidence interval.

    ``summary`` is ``kvlab.results.forced_summary.summarize_forced(rows)``; with a column ``workload``, each has
    a row of panels under its name. `among` are the policies of the whole set where it holds a part of them: see
    `kvlab.charts`.
    """
    require(summary, "policy", "measure", "value", "low", "high", "items")
    panels = [name for name in PANELS if name in set(summary["measure"])]
    if not panels:
        raise RunError(f"this summary has none of the measures {', '.join(PANELS)}; run the workload tools")
    look = Look(summary, among)
    data = look.labelled(summary)
    if "workload" not in summary.columns:
        drawn: Any = _row(data, panels, look)
    else:
        parts = data.partition_by("workload", maintain_order=True)
        drawn = alt.vconcat(*(_named(_row(part, panels, look), part["workload"][0]) for part in parts), spacing=24)
    note = ["Bars: 95 % confidence, by bootstrap over items. A flip: the most probable token is not that of full."]
    return styled(drawn, "Which compression breaks tool calls first", note)


def _row(data: pl.DataFrame, panels: Sequence[str], look: Look) -> Any:
    """Draw the panels of those measures that the data has, beside each other."""
    present = [name for name in panels if name in set(data["measure"])]
    drawn = [_panel(data.filter(pl.col("measure") == name), name, look, name == present[0]) for name in present]
    return alt.hconcat(*drawn, spacing=14)


def _named(row: Any, name: str) -> Any:
    return row.properties(title=alt.TitleParams(name, anchor="start", fontSize=13, color=SOFT_INK.light))


def _panel(data: pl.DataFrame, name: str, look: Look, is_first: bool) -> Any:
    """Draw one measure; the first panel names the policies."""
    is_kl = name.endswith("KL")
    scale = alt.Scale(type="symlog", constant=1e-3, domainMin=0) if is_kl else alt.Scale(domainMin=0)
    axis = alt.Axis(format="~g", values=KL_TICKS) if is_kl else alt.Axis(format="~%", tickCount=4)
    title = f"{name} (nats)" if is_kl else name
    named = alt.Axis(labelLimit=AXIS_LABEL_PX, ticks=False, domain=False, labelPadding=10) if is_first else None
    form = ".4f" if is_kl else ".1%"
    base = alt.Chart(data, width=PANEL_WIDTH, height=ROW_HEIGHT * len(look.labels)).encode(
        y=alt.Y("policy:N", sort=look.labels, scale=alt.Scale(domain=look.labels), title=None, axis=named),
        color=look.color(legend=False),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("value:Q", title=name, format=form),
            alt.Tooltip("low:Q", format=form),
            alt.Tooltip("high:Q", format=form),
            alt.Tooltip("items:Q"),
        ],
    )
    rules = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title, scale=scale, axis=axis), x2="high:Q")
    points = base.mark_point(filled=True, size=70, opacity=1).encode(x=alt.X("value:Q", title=title, scale=scale))
    return alt.layer(rules, points)


def kl_by_position(rows: pl.DataFrame, *, among: Sequence[str] | None = None) -> Any:
    """Draw the mean KL from the uncached model by the place behind the context, a line a policy.

    `among` are the policies of the whole set where `rows` hold a part of them: see `kvlab.charts`.
    """
    require(rows, "policy", "metric", "value", "position")
    data = rows.filter(pl.col("metric") == "kl", pl.col("position").is_not_null())
    if data.is_empty():
        raise RunError("these rows have no kl by position; run the workload kl")
    look = Look(data, among)
    base = alt.Chart(look.labelled(data)).encode(
        x=alt.X("position:Q", title="tokens behind the context, from", scale=alt.Scale(type="log", base=2)),
        y=alt.Y(
            "value:Q",
            title="KL from the uncached model (nats)",
            scale=alt.Scale(type="symlog", constant=1e-4),
            axis=alt.Axis(format="~g", values=KL_TICKS),
        ),
        color=look.color(),
        tooltip=[alt.Tooltip("policy:N"), alt.Tooltip("position:Q"), alt.Tooltip("value:Q", title="kl", format=".5f")],
    )
    lines = base.mark_line(strokeWidth=2).encode(**look.dash())
    note = ["A point: a position and those up to the next point."]
    return styled(
        alt.layer(lines, base.mark_point(filled=True, size=36, opacity=1)),
        "Distance from the uncached model by position",
        note,
    )
