"""Bytes by tier over time: what is live, what rests in memory, what is on SSD."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.style import WIDTH, require, styled
from kvlab.charts.turns import MAX_POINTS, running_total
from kvlab.errors import RunError

TIERS = {"live": "#59626f", "RAM": "#2f6db5", "SSD": "#1c9a76"}
_METRICS = {"kv_bytes_ram": "RAM", "kv_bytes_ssd": "SSD"}


def bytes_by_tier(rows: pl.DataFrame, tokens: pl.DataFrame, finished: pl.DataFrame, submitted: pl.DataFrame) -> Any:
    """Live KV at each token above what rests in RAM and on SSD after each request, against seconds, for one policy.

    `tokens`, `finished` and `submitted` are events with `policy`, `request`, `t` and, of `submitted`, `conversation`
    and `turn`, by which rows find their time.
    """
    require(rows, "metric", "value", "turn", "conversation")
    require(tokens, "policy", "request", "t", "kv_bytes")
    require(submitted, "request", "t", "conversation", "turn")
    live = running_total(tokens, finished, submitted, MAX_POINTS)
    live = live.select("seconds", pl.lit("live").alias("tier"), (pl.col("kv_bytes") / 1e6).alias("mb"))
    start = submitted["t"].min()
    ends = submitted.select("request", "conversation", "turn").join(finished.select("request", "t"), on="request")
    resting = rows.filter(pl.col("metric").is_in(list(_METRICS))).join(ends, on=["conversation", "turn"])
    if resting.is_empty():
        raise RunError("no bytes at rest: run a policy with tiers, such as tiered")
    rest = resting.select(
        (pl.col("t") - start).alias("seconds"),
        pl.col("metric").replace_strict(_METRICS).alias("tier"),
        (pl.col("value") / 1e6).alias("mb"),
    ).sort("tier", "seconds")
    last: Any = live["seconds"].max()
    whole = [{"seconds": s, "tier": tier, "mb": mb} for tier in _METRICS.values() for s, mb in _ends(rest, tier, last)]
    data = pl.concat([live, rest, pl.DataFrame(whole, schema=live.schema)]).sort("tier", "seconds", maintain_order=True)
    shades = alt.Scale(domain=list(TIERS), range=list(TIERS.values()))
    base = alt.Chart(data).encode(
        x=alt.X("seconds:Q", title="seconds since the first request", scale=alt.Scale(nice=False)),
        y=alt.Y("mb:Q", title="KV (MB)", scale=alt.Scale(zero=True)),
        color=alt.Color(
            "tier:N", title=None, scale=shades, legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=4)
        ),
        tooltip=["tier:N", alt.Tooltip("seconds:Q", format=".2f"), alt.Tooltip("mb:Q", format=".2f")],
    )
    steps = base.transform_filter(alt.datum.tier != "live").mark_line(strokeWidth=2, interpolate="step-after")
    teeth = base.transform_filter(alt.datum.tier == "live").mark_line(strokeWidth=1.4)
    note = ["Live: at each token. RAM and SSD: after each request; writing goes on behind it."]
    return styled(alt.layer(teeth, steps).properties(width=WIDTH, height=280), "KV by tier over time", note)


def _ends(rest: pl.DataFrame, tier: str, last: float) -> list[tuple[float, float]]:
    """Nothing at the start, and at the end what there was last."""
    held = rest.filter(pl.col("tier") == tier)["mb"]
    return [(0.0, 0.0), (last, float(held[-1]) if len(held) else 0.0)]
