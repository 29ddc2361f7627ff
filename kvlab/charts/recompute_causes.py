"""Why tokens are computed: a bar for each cause, from the rows of ``kvlab replay --causes``."""

from __future__ import annotations

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, SOFT_INK
from kvlab.charts.style import WIDTH, require, styled
from kvlab.errors import RunError

BAR_HEIGHT = 30
MARGIN = 1.4
"""The axis ends so much behind the longest bar, for its numbers."""


def recompute_causes(rows: pl.DataFrame) -> alt.LayerChart:
    """Draw the share of all computed tokens by cause, the largest first, with the requests that it happened to."""
    require(rows, "cause", "metric", "value", "trace")
    tokens = rows.filter(pl.col("metric") == "recomputed_tokens").select("cause", pl.col("value").alias("tokens"))
    if tokens.is_empty():
        raise RunError("no causes: this chart shows the rows of `kvlab replay --causes --json`")
    requests = rows.filter(pl.col("metric") == "requests").select("cause", pl.col("value").alias("requests"))
    every = tokens["tokens"].sum()
    data = tokens.join(requests, on="cause").sort("tokens", descending=True)
    data = data.with_columns((pl.col("tokens") / every).alias("share"))
    data = data.with_columns(
        pl.struct("share", "requests")
        .map_elements(
            lambda one: (
                f"{100 * one['share']:.1f} %, {one['requests']:,} {'request' if one['requests'] == 1 else 'requests'}"
            ),
            return_dtype=pl.String,
        )
        .alias("shown")
    )
    order = data["cause"].to_list()
    top = MARGIN * max(map(float, data["share"].to_list()))
    base = alt.Chart(data).encode(
        y=alt.Y("cause:N", sort=order, title=None, axis=alt.Axis(domain=False, ticks=False, grid=False)),
        x=alt.X(
            "share:Q", title="of all computed tokens", scale=alt.Scale(domain=[0, top]), axis=alt.Axis(format="~%")
        ),
        tooltip=["cause:N", alt.Tooltip("tokens:Q", format=","), alt.Tooltip("requests:Q", format=",")],
    )
    bars = base.mark_bar(color=BLUE.light, height={"band": 0.62})
    numbers = base.mark_text(align="left", dx=6, fontSize=11, color=SOFT_INK.light).encode(text="shown:N")
    chart = alt.layer(bars, numbers).properties(width=WIDTH, height=BAR_HEIGHT * len(order))
    return styled(chart, f"Why tokens are computed: {rows['trace'][0]}", ["Beside each bar: its share, and how often."])
