"""Methods by how far they are from the uncached model: a row a method, a column a measure, a mark a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, ORANGE, SOFT_INK
from kvlab.charts.policy_styles import SHAPES
from kvlab.charts.style import AXIS_LABEL_PX, legend_of, require, styled
from kvlab.errors import RunError

PANEL_PX, ROW_PX = 440, 24
"""Width of all panels together, and height of a row."""
COLORS = (ORANGE, BLUE)
"""Colours of budgets, from the smallest up; their shapes differ too."""
ABOVE, BELOW = "oracle", "random"
"""The rows that frame all others: what knows the future, and what knows nothing."""
KL_TICKS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10]


def measures_by_method(summary: pl.DataFrame, title: str) -> Any:
    """Draw each measure of each method at each budget, with 95 % intervals, between `oracle` and `random`.

    ``summary`` has the columns `measure`, `method`, `budget`, `value`, `low` and `high`, one row for each; the best
    method is on top, by the mean of the last measure. Dashed lines go through the marks of `oracle` and `random`.
    Measures that end with `KL` have a logarithmic axis. Raises RunError where there is nothing to draw, or more than
    two budgets.
    """
    require(summary, "measure", "method", "budget", "value", "low", "high")
    if summary.is_empty():
        raise RunError("there is nothing to draw: the summary is empty")
    budgets = sorted(summary["budget"].unique().to_list())
    if len(budgets) > len(COLORS):
        raise RunError(f"this chart tells {len(COLORS)} budgets apart, and the rows have {len(budgets)}: filter them")
    labels = [f"keeps {budget:.0%} of the prompt" for budget in budgets]
    data = summary.with_columns(pl.col("budget").replace_strict(budgets, labels, return_dtype=pl.String).alias("kept"))
    measures = data["measure"].unique(maintain_order=True).to_list()
    order = _order(data.filter(pl.col("measure") == measures[-1]), is_more_better="equal" in measures[-1])
    width = PANEL_PX // len(measures)
    panels = [
        _panel(data.filter(pl.col("measure") == measure), measure, labels, order, width, is_first=index == 0)
        for index, measure in enumerate(measures)
    ]
    note = [
        f"Ranked by {measures[-1]}; bars: 95 % confidence, by bootstrap over the items.",
        f"Dashed: {ABOVE}, which has read the answer, and {BELOW}.",
    ]
    return styled(alt.hconcat(*panels, spacing=18), title, note)


def _order(data: pl.DataFrame, *, is_more_better: bool) -> list[str]:
    """Return the methods from the best down, the two that frame them at the ends."""
    ranked = data.group_by("method", maintain_order=True).agg(pl.col("value").mean())
    found = ranked.sort("value", descending=is_more_better, maintain_order=True)["method"].to_list()
    between = [method for method in found if method not in (ABOVE, BELOW)]
    return [*(m for m in (ABOVE,) if m in found), *between, *(m for m in (BELOW,) if m in found)]


def _panel(
    data: pl.DataFrame, measure: str, labels: Sequence[str], order: Sequence[str], width: int, *, is_first: bool
) -> Any:
    color = alt.Color(
        "kept:N", title=None, legend=legend_of(labels, points=True),
        scale=alt.Scale(domain=list(labels), range=[tone.light for tone in COLORS[: len(labels)]]),
    )  # fmt: skip
    shape = alt.Shape(
        "kept:N", title=None, legend=legend_of(labels, points=True),
        scale=alt.Scale(domain=list(labels), range=list(SHAPES[: len(labels)])),
    )  # fmt: skip
    is_kl = measure.endswith("KL")
    form = ".4f" if is_kl else ".1%"
    axis = alt.Axis(labels=is_first, labelLimit=AXIS_LABEL_PX, grid=True)
    base = alt.Chart(data, width=width, height=ROW_PX * len(order)).encode(
        y=alt.Y("method:N", sort=list(order), title=None, axis=axis, scale=alt.Scale(domain=list(order))),
        yOffset=alt.YOffset("kept:N", sort=list(labels), scale=alt.Scale(paddingInner=0.6)),
        tooltip=[
            alt.Tooltip("method:N"),
            alt.Tooltip("kept:N"),
            alt.Tooltip("value:Q", title=measure, format=form),
            alt.Tooltip("low:Q", format=form),
            alt.Tooltip("high:Q", format=form),
        ],
    )
    if is_kl:
        across: dict[str, Any] = {
            "title": f"{measure} from full (nats)",
            "scale": alt.Scale(type="log", nice=False, padding=8),
            "axis": alt.Axis(values=KL_TICKS, format="~g"),
        }
    else:
        across = {"title": measure, "scale": alt.Scale(domainMin=0), "axis": alt.Axis(format="~%", tickCount=4)}
    bars = base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(x=alt.X("low:Q", **across), x2="high:Q", color=color)
    points = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=alt.X("value:Q", **across), color=color, shape=shape
    )
    frame = alt.Chart(data.filter(pl.col("method").is_in([ABOVE, BELOW]))).mark_rule(
        strokeDash=[3, 4], strokeWidth=1, opacity=0.8
    )
    lines = frame.encode(x=alt.X("value:Q", **across), color=color)
    return alt.layer(lines, bars, points, title=alt.TitleParams(measure, fontSize=13, color=SOFT_INK.light))
