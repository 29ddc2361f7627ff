"""How even the tokens of an answer come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, ORANGE
from kvlab.charts.style import WIDTH, Look, require, styled
from kvlab.errors import RunError

POINTS = 200  # quantiles of one policy: more cannot be seen


def token_gaps(first: pl.DataFrame, tokens: pl.DataFrame, *, among: Sequence[str] | None = None) -> Any:
    """Draw the share of gaps between two tokens that are shorter than x ms, a curve a policy, on a logarithmic axis.

    ``first`` and ``tokens`` are `first_token` and `token` events (``policy``, ``request``, ``t``).
    """
    for frame in (first, tokens):
        require(frame, "policy", "request", "t")
    times = pl.concat([frame.select("policy", "request", "t") for frame in (first, tokens)]).sort(
        "t", maintain_order=True
    )
    gaps = times.with_columns((1e3 * pl.col("t").diff().over("policy", "request")).alias("gap")).drop_nulls("gap")
    gaps = gaps.filter(pl.col("gap") > 0)
    if gaps.is_empty():
        raise RunError("no gaps: the answers have one token each")
    shares = [i / POINTS for i in range(POINTS + 1)]
    order = gaps["policy"].unique(maintain_order=True).to_list()
    look = Look(gaps, among)
    data = pl.concat(
        pl.DataFrame(
            {
                "policy": [policy] * len(shares),
                "share": shares,
                "gap": [gaps.filter(pl.col("policy") == policy)["gap"].quantile(share, "linear") for share in shares],
            }
        )
        for policy in order
    )
    chart = (
        alt.Chart(look.labelled(data))
        .mark_line(strokeWidth=2.2)
        .encode(
            x=alt.X("gap:Q", title="gap between two tokens (ms)", scale=alt.Scale(type="log", nice=False)),
            y=alt.Y("share:Q", title="share of the gaps that are shorter", axis=alt.Axis(format="%")),
            color=look.color(),
            tooltip=["policy:N", alt.Tooltip("gap:Q", format=".2f"), alt.Tooltip("share:Q", format=".1%")],
            **look.dash(),
        )
    )
    return styled(alt.layer(chart).properties(width=WIDTH, height=240), "Gaps between tokens")


def gaps_beside_a_long_prompt(rows: pl.DataFrame) -> Any:
    """Draw gaps between tokens: the usual one without other work, the 99th percentile beside a long prefill."""
    require(rows, "model", "metric", "value", "phase")
    data = rows.filter(pl.col("metric").is_in(["itl_p50_ms", "itl_p99_ms"])).select("model", "phase", "value")
    if data.is_empty():
        raise RunError("no itl rows: this chart shows the rows of `kvlab bench pace --json`")
    colors = alt.Scale(domain=["quiet", "prefill"], range=[BLUE.light, ORANGE.light])
    chart = (
        alt.Chart(data)
        .mark_bar(size=26)
        .encode(
            x=alt.X("value:Q", title="gap between two tokens (ms)"),
            y=alt.Y("phase:N", title=None, sort=["quiet", "prefill"]),
            color=alt.Color("phase:N", legend=None, scale=colors),
            row=alt.Row("model:N", title=None),
            tooltip=["model:N", "phase:N", alt.Tooltip("value:Q", format=".2f")],
        )
        .properties(width=WIDTH, height=70)
    )
    return styled(chart, "While a long prompt is prefilled", ["quiet: median gap; prefill: 99th percentile."])
