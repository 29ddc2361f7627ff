"""KV by tier: bytes over time, live ones included, and where each block at rest is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.live import MAX_POINTS, running_total
from kvlab.charts.style import GREY, WIDTH, require, styled
from kvlab.errors import RunError

TIERS = {"live": "#59626f", "RAM": "#2f6db5", "SSD": "#1c9a76"}
PLACES = {"ram": TIERS["RAM"], "ssd": TIERS["SSD"], "gone": "#e3e6ea"}
_METRICS = {"kv_bytes_ram": "RAM", "kv_bytes_ssd": "SSD"}


def bytes_by_tier(rows: pl.DataFrame, tokens: pl.DataFrame, finished: pl.DataFrame, submitted: pl.DataFrame) -> Any:
    """Draw live KV at each token above KV in RAM and on SSD after each request, against seconds, for one policy.

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
    base = alt.Chart(data).encode(
        x=alt.X("seconds:Q", title="seconds since the first request", scale=alt.Scale(nice=False)),
        y=alt.Y("mb:Q", title="KV (MB)", scale=alt.Scale(zero=True)),
        color=_shade(TIERS, legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=4)),
        tooltip=["tier:N", alt.Tooltip("seconds:Q", format=".2f"), alt.Tooltip("mb:Q", format=".2f")],
    )
    steps = base.transform_filter(alt.datum.tier != "live").mark_line(strokeWidth=2, interpolate="step-after")
    teeth = base.transform_filter(alt.datum.tier == "live").mark_line(strokeWidth=1.4)
    note = ["Live: at each token. RAM and SSD: after each request; writing goes on behind it."]
    return styled(alt.layer(teeth, steps).properties(width=WIDTH, height=280), "KV by tier over time", note)


def block_map(blocks: pl.DataFrame, *, step: int | None = None) -> Any:
    """Draw every block of every conversation, coloured by the tier it rests in after a request (None: the last).

    ``blocks`` has ``step``, ``conversation``, ``block``, ``tier``. Raises RunError for a step that is not there.
    """
    require(blocks, "step", "conversation", "block", "tier")
    most: Any = blocks["step"].max()
    last = most if step is None else step
    data = blocks.filter(pl.col("step") == last)
    if data.is_empty():
        raise RunError(f"no request {last}; there are 1 to {most}")
    order = blocks["conversation"].unique(maintain_order=True).to_list()
    widest: Any = blocks["block"].max()
    # Runs of one tier as one rectangle: hundreds of blocks a conversation are few rows then.
    run = (pl.col("tier") != pl.col("tier").shift()).fill_null(True).cum_sum().over("conversation")
    runs = (
        data.sort("conversation", "block")
        .with_columns(run.alias("run"))
        .group_by("conversation", "run", "tier", maintain_order=True)
        .agg(pl.col("block").min().alias("start"), (pl.col("block").max() + 1).alias("stop"))
    )
    chart = (
        alt.Chart(alt.InlineData(values=runs.to_dicts()))
        .mark_bar(stroke="white", strokeWidth=1.5)
        .encode(
            x=alt.X("start:Q", title="block", scale=alt.Scale(domain=[0, widest + 1], nice=False)),
            x2="stop:Q",
            y=alt.Y("conversation:N", title=None, sort=order, scale=alt.Scale(domain=order)),
            color=_shade(PLACES, sort=None),
            tooltip=["conversation:N", "tier:N", alt.Tooltip("start:Q", title="from block"),
                     alt.Tooltip("stop:Q", title="to, exclusive")],
        )
        .properties(width=WIDTH, height=max(60, 30 * len(order)))
    )  # fmt: skip
    return styled(chart, f"Where the blocks rest after request {last}")


def bytes_at_rest(steps: pl.DataFrame, *, step: int | None = None) -> Any:
    """Draw bytes at rest by tier after each request (``steps``: ``step``, ``ram``, ``ssd``); a rule marks ``step``."""
    require(steps, "step", "ram", "ssd")
    data = steps.select("step", "ram", "ssd").unpivot(index="step", variable_name="tier", value_name="bytes")
    chart = (
        alt.Chart(data.with_columns(pl.col("bytes") / 1e6))
        .mark_line(point=True, strokeWidth=2.4)
        .encode(
            x=alt.X("step:Q", title="request", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)),
            y=alt.Y("bytes:Q", title="KV at rest (MB)", scale=alt.Scale(zero=True)),
            color=_shade({tier: PLACES[tier] for tier in ("ram", "ssd")}, sort=None),
            tooltip=["step:Q", "tier:N", alt.Tooltip("bytes:Q", title="MB", format=".2f")],
        )
    )
    layers = [chart]
    if step is not None:
        at = alt.Chart(pl.DataFrame({"step": [step]}))
        layers.append(at.mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="step:Q"))
    return styled(alt.layer(*layers).properties(width=WIDTH, height=200), "KV at rest by tier")


def _shade(tiers: Mapping[str, str], **more: Any) -> alt.Color:
    """Return the colour channel of these tiers, in their order."""
    return alt.Color("tier:N", title=None, scale=alt.Scale(domain=list(tiers), range=list(tiers.values())), **more)


def _ends(rest: pl.DataFrame, tier: str, last: float) -> list[tuple[float, float]]:
    """Add a zero at the start and the last value at the end."""
    held = rest.filter(pl.col("tier") == tier)["mb"]
    return [(0.0, 0.0), (last, float(held[-1]) if len(held) else 0.0)]
