"""Live KV over time: what all running requests hold together."""

from __future__ import annotations

import altair as alt
import numpy as np
import polars as pl

from kvlab.charts.style import color, require, styled

MAX_POINTS = 800  # of one line over time: more cannot be seen and makes a page heavy
MAX_ROWS = 4500  # of all lines together: Altair refuses 5,000
INSTANT = 1e-6  # seconds


def kv_bytes_over_time(
    tokens: pl.DataFrame, finished: pl.DataFrame | None = None, submitted: pl.DataFrame | None = None
) -> alt.LayerChart:
    """Draw the live KV of all running requests against the time since each policy's first event.

    `tokens` are `token` events (`policy`, `request`, `t`, `kv_bytes`), where it is measured. With `submitted` and
    `finished` events (`policy`, `request`, `t`) the line rises from nothing and falls when a request ends.
    """
    require(tokens, "policy", "request", "t", "kv_bytes")
    parts = tokens.partition_by("policy", maintain_order=True)
    most = min(MAX_POINTS, MAX_ROWS // len(parts))
    data = pl.concat([running_total(part, finished, submitted, most) for part in parts])
    chart = (
        alt.Chart(data.with_columns(pl.col("kv_bytes") / 1e6))
        .mark_line(strokeWidth=1.6, strokeJoin="round")
        .encode(
            x=alt.X("seconds:Q", title="seconds since the first request"),
            y=alt.Y("kv_bytes:Q", title="live KV (MB)", scale=alt.Scale(zero=True)),
            color=color(data),
            tooltip=[
                alt.Tooltip("policy:N"),
                alt.Tooltip("seconds:Q", format=".2f"),
                alt.Tooltip("kv_bytes:Q", title="live KV (MB)", format=".2f"),
            ],
        )
    )
    return styled(alt.layer(chart), "Live KV over time", ["Measured at each token; straight lines in between."])


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
