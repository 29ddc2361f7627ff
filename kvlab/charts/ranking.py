"""The ranking of designs: how long all requests of a workload wait under each."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, GREY, INK, ORANGE
from kvlab.charts.style import AXIS_LABEL_PX, WIDTH, Look, require, styled
from kvlab.errors import RunError

CHOSEN, TIED, OTHER = "chosen", "as good, less simple", "others"
MOST_SHOWN = 16


def waits_by_design(rows: pl.DataFrame) -> Any:
    """Draw the waits for all first tokens under each design that fits, as bars: the rows of ``kvlab advise``.

    The choice and those that tie are told apart by colour and by a sign at their number.
    """
    require(rows, "policy", "metric", "value", "rank", "chosen", "tied", "fits")
    data = rows.filter((pl.col("metric") == "ttft_total_ms") & pl.col("fits")).sort("rank").head(MOST_SHOWN)
    if data.is_empty():
        raise RunError("no design fits: there is nothing to draw")
    sign = pl.when(pl.col("chosen")).then(pl.lit("← ")).when(pl.col("tied")).then(pl.lit("= ")).otherwise(pl.lit(""))
    what = (
        pl.when(pl.col("chosen")).then(pl.lit(CHOSEN)).when(pl.col("tied")).then(pl.lit(TIED)).otherwise(pl.lit(OTHER))
    )
    seconds = pl.col("value") / 1e3
    shown = seconds.map_elements(lambda value: f"{value:,.3g}", pl.String)
    data = (
        Look(data)
        .labelled(data)
        .with_columns(what.alias("what"), seconds.alias("seconds"), (sign + shown).alias("shown"))
    )
    order = data["policy"].to_list()
    scale = alt.Scale(domain=[CHOSEN, TIED, OTHER], range=[ORANGE.light, BLUE.light, GREY.light])
    y = alt.Y("policy:N", title=None, sort=order, axis=alt.Axis(labelLimit=AXIS_LABEL_PX))
    x = alt.X("seconds:Q", title="seconds that all requests wait for their first token", scale=alt.Scale(zero=True))
    base = alt.Chart(data).encode(x=x, y=y)
    bars = base.mark_bar(size=16).encode(
        color=alt.Color("what:N", title=None, scale=scale),
        tooltip=["policy:N", "what:N", alt.Tooltip("seconds:Q", format=",.2f")],
    )
    texts = base.mark_text(align="left", dx=6, fontSize=11, color=INK.light).encode(text="shown:N")
    chart = alt.layer(bars, texts).properties(width=WIDTH, height=28 * max(2, len(order)))
    return styled(chart, "Which design waits least", ["Simulated; shorter is better."])
