"""Methods ranked by their right answers: a row a method, a column a workload, a mark a budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, ORANGE, SOFT_INK
from kvlab.charts.policy_styles import SHAPES
from kvlab.charts.style import AXIS_LABEL_PX, legend_of, require, styled
from kvlab.errors import RunError

PANEL_WIDTH, ROW_PX = 250, 24
COLORS = (ORANGE, BLUE)
"""Colours of budgets, from the smallest up; their shapes differ too."""


def accuracy_by_method(summary: pl.DataFrame, titles: Mapping[str, str] | None = None) -> Any:
    """Draw the share of right answers of each method at each budget, with 95 % intervals; the best method is on top.

    ``summary`` has the columns `workload`, `method`, `budget`, `accuracy`, `low` and `high`, one row for each;
    ``titles`` name the panels by workload. Methods are ranked by their mean over all that is drawn. Raises RunError
    where there is nothing to draw, or more than two budgets.
    """
    require(summary, "workload", "method", "budget", "accuracy", "low", "high")
    if summary.is_empty():
        raise RunError("there is nothing to draw: the summary is empty")
    budgets = sorted(summary["budget"].unique().to_list())
    if len(budgets) > len(COLORS):
        raise RunError(f"this chart tells {len(COLORS)} budgets apart, and the rows have {len(budgets)}: filter them")
    labels = [f"keeps {budget:.0%} of the prompt" for budget in budgets]
    data = summary.with_columns(
        pl.col("budget").replace_strict(budgets, labels, return_dtype=pl.String).alias("kept"),
        pl.col("workload").replace(dict(titles or {})).alias("panel"),
    )
    order = (
        data.group_by("method", maintain_order=True)
        .agg(pl.col("accuracy").mean())
        .sort("accuracy", descending=True, maintain_order=True)["method"]
        .to_list()
    )
    color = alt.Color(
        "kept:N", title=None, legend=legend_of(labels, points=True),
        scale=alt.Scale(domain=labels, range=[tone.light for tone in COLORS[: len(labels)]]),
    )  # fmt: skip
    shape = alt.Shape(
        "kept:N", title=None, legend=legend_of(labels, points=True),
        scale=alt.Scale(domain=labels, range=list(SHAPES[: len(labels)])),
    )  # fmt: skip
    offset = alt.YOffset("kept:N", sort=labels, scale=alt.Scale(paddingInner=0.6))
    drawn = []
    panels = data["panel"].unique(maintain_order=True).to_list()
    for index, panel in enumerate(panels):
        axis = alt.Axis(labels=index == 0, labelLimit=AXIS_LABEL_PX, grid=True)
        base = alt.Chart(data.filter(pl.col("panel") == panel), width=PANEL_WIDTH, height=ROW_PX * len(order)).encode(
            y=alt.Y("method:N", sort=order, title=None, axis=axis, scale=alt.Scale(domain=order)),
            yOffset=offset,
            tooltip=[
                alt.Tooltip("method:N"),
                alt.Tooltip("kept:N"),
                alt.Tooltip("accuracy:Q", format=".0%"),
                alt.Tooltip("low:Q", format=".0%"),
                alt.Tooltip("high:Q", format=".0%"),
            ],
        )
        across: dict[str, Any] = {
            "title": "right answers",
            "scale": alt.Scale(domain=[0, 1.03], nice=False),
            "axis": alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format="%"),
        }
        bars = base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(x=alt.X("low:Q", **across), x2="high:Q", color=color)
        points = base.mark_point(filled=True, size=60, opacity=1).encode(
            x=alt.X("accuracy:Q", **across), color=color, shape=shape
        )
        name = alt.TitleParams(panel, fontSize=13, color=SOFT_INK.light)
        drawn.append(alt.layer(bars, points, title=name))
    note = [
        "Ranked by the mean of all marks; bars: 95 % confidence, by bootstrap over the questions",
        "(rule of three at 0 % and 100 %).",
    ]
    return styled(alt.hconcat(*drawn, spacing=18), "Right answers by method", note)
