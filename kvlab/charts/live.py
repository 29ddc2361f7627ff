"""Live KV over time: what all running requests hold together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from kvlab.charts.style import WIDTH, Look, require, styled

MAX_POINTS = 800  # of one line over time: more cannot be seen and makes a page heavy
MAX_ROWS = 4500  # of all lines together: Altair refuses 5,000
INSTANT = 1e-6  # seconds
MOST_IN_ONE_PANEL = 4  # policies whose teeth can be told apart in one panel


def kv_bytes_over_time(
    tokens: pl.DataFrame,
    finished: pl.DataFrame | None = None,
    submitted: pl.DataFrame | None = None,
    *,
    among: Sequence[str] | None = None,
) -> Any:
    """Draw the live KV of all running requests against the time since each policy's first event.

    `tokens` are `token` events (`policy`, `request`, `t`, `kv_bytes`), where it is measured. With `submitted` and
    `finished` events (`policy`, `request`, `t`) the line rises from nothing and falls when a request ends. More
    than a few policies get a panel each, on one scale.
    """
    require(tokens, "policy", "request", "t", "kv_bytes")
    parts = tokens.partition_by("policy", maintain_order=True)
    most = min(MAX_POINTS, MAX_ROWS // len(parts))
    data = pl.concat([running_total(part, finished, submitted, most) for part in parts])
    look = Look(data, among)
    data = look.labelled(data)
    panels = len(look.labels) > MOST_IN_ONE_PANEL
    chart = (
        alt.Chart(data.with_columns(pl.col("kv_bytes") / 1e6))
        .mark_line(strokeWidth=1.6, strokeJoin="round")
        .encode(
            x=alt.X("seconds:Q", title="seconds since the first request"),
            y=alt.Y(
                "kv_bytes:Q",
                title="MB" if panels else "live KV (MB)",
                scale=alt.Scale(zero=True),
                axis=alt.Axis(tickCount=3 if panels else 8),
            ),
            color=look.color(legend=not panels),
            tooltip=[
                alt.Tooltip("policy:N"),
                alt.Tooltip("seconds:Q", format=".2f"),
                alt.Tooltip("kv_bytes:Q", title="live KV (MB)", format=".2f"),
            ],
        )
    )
    note = ["Measured at each token; straight lines in between."]
    if not panels:
        return styled(alt.layer(chart), "Live KV over time", note)
    header = alt.Header(
        labelOrient="top",
        labelAnchor="start",
        labelAngle=0,
        labelFontWeight=600,
        labelLimit=WIDTH,
        labelPadding=2,
        title=None,
    )
    row = alt.Row("policy:N", sort=look.labels, header=header)
    return styled(chart.properties(width=WIDTH, height=54).facet(row=row, spacing=12), "Live KV over time", note)


def running_total(
    tokens: pl.DataFrame, finished: pl.DataFrame | None, submitted: pl.DataFrame | None, most: int
) -> pl.DataFrame:
    """Return `policy`, `seconds` and `kv_bytes`, summed over the running requests, at `most` moments or fewer."""
    policy = tokens["policy"][0]
    points = tokens.select("request", "t", "kv_bytes")
    nothing = pl.lit(0, pl.Int64).alias("kv_bytes")
    if submitted is not None:
        points = pl.concat([submitted.filter(pl.col("policy") == policy).select("request", "t", nothing), points])
    if finished is not None:  # still held at its end, gone just after
        ends = finished.filter(pl.col("policy") == policy).join(
            points.group_by("request").agg(pl.col("kv_bytes").last()), on="request"
        )
        points = pl.concat([points, ends.select("request", "t", "kv_bytes")])
        points = pl.concat([points, ends.select("request", pl.col("t") + INSTANT, nothing)])
    moments = points["t"].unique().sort().gather_every(-(-points["t"].n_unique() // most)).to_numpy()
    total = np.zeros(len(moments))
    for one in points.sort("t", maintain_order=True).partition_by("request"):
        total += np.interp(moments, one["t"], one["kv_bytes"], left=0, right=0 if finished is not None else None)
    return pl.DataFrame({"policy": [policy] * len(moments), "seconds": moments - moments[0], "kv_bytes": total})
