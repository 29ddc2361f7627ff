"""Many candidates at many measures: a table of values, each cell coloured by its rank among the candidates."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, INK
from kvlab.charts.style import require, styled

CELL_WIDTH, CELL_HEIGHT = 84, 24
MOST_OPAQUE = 0.55
"""Of the best cell: the value on it stays readable on light and on dark pages."""
LABEL_PX, HEADING_PADDING_PX = 200, 20


def ranks(cells: pl.DataFrame) -> pl.DataFrame:
    """Return the cells with `score`: 1 for the best of a measure, 0 for the worst; equal as shown, equal score.

    ``cells`` have `policy`, `measure`, `value`, `shown` (the value as text) and `more_is_better`.
    """
    sign = pl.when(pl.col("more_is_better")).then(-pl.col("value")).otherwise(pl.col("value"))
    best = cells.with_columns(sign.alias("cost")).with_columns(
        pl.col("cost").min().over("measure", "shown").alias("cost")
    )
    rank = pl.col("cost").rank("dense").over("measure")
    ranked = best.with_columns(rank.alias("rank"))
    last = pl.col("rank").max().over("measure")
    score = pl.when(last > 1).then(1 - (pl.col("rank") - 1) / (last - 1)).otherwise(1.0)
    return ranked.with_columns(score.alias("score")).drop("cost")


def at_a_glance(cells: pl.DataFrame, title: str) -> Any:
    """Draw a row a candidate and a column a measure, in the order of the cells; the darker a cell, the better.

    The best of each measure stand in bold. ``cells`` are those of `ranks`.
    """
    require(cells, "policy", "measure", "value", "shown", "more_is_better")
    data = ranks(cells)
    policies, measures = (data[name].unique(maintain_order=True).to_list() for name in ("policy", "measure"))
    plain: dict[str, Any] = {"domain": False, "ticks": False, "grid": False}
    lines: dict[str, Any] = {
        "labelExpr": "split(datum.label, '|')",
        "labelBaseline": "bottom",
        "labelPadding": HEADING_PADDING_PX,
    }
    axis = alt.Axis(orient="top", labelAngle=0, **lines, **plain)
    base = alt.Chart(data, width=CELL_WIDTH * len(measures), height=CELL_HEIGHT * len(policies)).encode(
        x=alt.X("measure:N", sort=measures, title=None, axis=axis),
        y=alt.Y("policy:N", sort=policies, title=None, axis=alt.Axis(labelLimit=LABEL_PX, **plain)),
        tooltip=["policy:N", "measure:N", "shown:N"],
    )
    opacity = alt.Opacity("score:Q", scale=alt.Scale(domain=[0, 1], range=[0.03, MOST_OPAQUE]), legend=None)
    boxes = base.mark_rect(color=BLUE.light).encode(opacity=opacity)
    weights: tuple[tuple[str, Any], ...] = (("<", "normal"), ("==", "bold"))
    texts = [
        base.transform_filter(f"datum.score {sign} 1")
        .mark_text(fontSize=11, color=INK.light, fontWeight=weight)
        .encode(text="shown:N")
        for sign, weight in weights
    ]
    return styled(alt.layer(boxes, *texts), title, ["The darker, the better among these; bold: the best of a column."])
