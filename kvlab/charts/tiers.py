"""KV by tier: bytes over time, live ones included, and the tier of each block at rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.axes import count_axis
from kvlab.charts.colors import PAGE
from kvlab.charts.live import MAX_POINTS, running_total
from kvlab.charts.style import GREY, WIDTH, require, styled
from kvlab.errors import RunError
from kvlab.tiers import LIVE, tiers, tiers_at_rest, tiers_measured

GONE = "gone"
"""Blocks that are nowhere any more: an outline without a colour."""


def bytes_by_tier(rows: pl.DataFrame, tokens: pl.DataFrame, finished: pl.DataFrame, submitted: pl.DataFrame) -> Any:
    """Draw live KV at each token, and KV at rest in each tier after each request, over time, for one policy.

    `tokens`, `finished` and `submitted` are events with `policy`, `request`, `t` and, of `submitted`, `conversation`
    and `turn`, by which rows find their time.
    """
    require(rows, "metric", "value", "turn", "conversation")
    require(tokens, "policy", "request", "t", "kv_bytes")
    require(submitted, "request", "t", "conversation", "turn")
    live = running_total(tokens, finished, submitted, MAX_POINTS)
    live = live.select("seconds", pl.lit(LIVE.label).alias("tier"), (pl.col("kv_bytes") / 1e6).alias("mb"))
    start = submitted["t"].min()
    ends = submitted.select("request", "conversation", "turn").join(finished.select("request", "t"), on="request")
    shown = {tier.metric: tier for tier in tiers_measured(rows["metric"].unique(maintain_order=True))}
    resting = rows.filter(pl.col("metric").is_in(list(shown))).join(ends, on=["conversation", "turn"])
    if resting.is_empty():
        raise RunError("no bytes at rest: run a policy with tiers, such as tiered")
    rest = resting.select(
        (pl.col("t") - start).alias("seconds"),
        pl.col("metric").replace_strict({metric: tier.label for metric, tier in shown.items()}).alias("tier"),
        (pl.col("value") / 1e6).alias("mb"),
    ).sort("tier", "seconds")
    last: Any = live["seconds"].max()
    labels = [tier.label for tier in shown.values()]
    whole = [{"seconds": s, "tier": label, "mb": mb} for label in labels for s, mb in _ends(rest, label, last)]
    data = pl.concat([live, rest, pl.DataFrame(whole, schema=live.schema)]).sort("tier", "seconds", maintain_order=True)
    base = alt.Chart(data).encode(
        x=alt.X("seconds:Q", title="seconds since the first request", scale=alt.Scale(nice=False)),
        y=alt.Y("mb:Q", title="KV (MB)", scale=alt.Scale(zero=True)),
        color=_shade(
            {tier.label: tier.color for tier in (LIVE, *shown.values())},
            legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=4),
        ),
        tooltip=["tier:N", alt.Tooltip("seconds:Q", format=".2f"), alt.Tooltip("mb:Q", format=".2f")],
    )
    steps = base.transform_filter(alt.datum.tier != LIVE.label).mark_line(strokeWidth=2, interpolate="step-after")
    teeth = base.transform_filter(alt.datum.tier == LIVE.label).mark_line(strokeWidth=1.4)
    note = [f"Live: at each token. {' and '.join(labels)}: after each request; writing goes on behind it."]
    return styled(alt.layer(teeth, steps).properties(width=WIDTH, height=280), "KV by tier over time", note)


def block_map(blocks: pl.DataFrame, *, step: int | None = None) -> Any:
    """Draw every block of every conversation, coloured by its tier after a request (None: the last).

    ``blocks`` has ``step``, ``conversation``, ``block``, ``tier``. Raises RunError for a step that is not there.
    """
    require(blocks, "step", "conversation", "block", "tier")
    most: Any = blocks["step"].max()
    last = most if step is None else step
    data = blocks.filter(pl.col("step") == last)
    if data.is_empty():
        raise RunError(f"no request {last}; there are 1 to {most}")
    present = [name for name in blocks["tier"].unique(maintain_order=True) if name != GONE]
    colors = {tier.name: tier.color for tier in tiers_at_rest(present)}
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
    blocks_scale = alt.Scale(domain=[0, widest + 1], nice=False)
    chart = (
        alt.Chart(alt.InlineData(values=runs.to_dicts()))
        .mark_bar(strokeWidth=1.5)
        .encode(
            x=alt.X("start:Q", title="block", axis=count_axis((0, widest + 1)), scale=blocks_scale),
            x2="stop:Q",
            y=alt.Y("conversation:N", title=None, sort=order, scale=alt.Scale(domain=order)),
            color=_shade(colors | {GONE: PAGE.light}, sort=None, legend=alt.Legend(symbolStrokeColor=GREY)),
            stroke=alt.condition(alt.datum.tier == GONE, alt.value(GREY), alt.value(PAGE.light)),
            tooltip=["conversation:N", "tier:N", alt.Tooltip("start:Q", title="from block"),
                     alt.Tooltip("stop:Q", title="to, exclusive")],
        )
        .properties(width=WIDTH, height=max(60, 30 * len(order)))
    )  # fmt: skip
    return styled(chart, f"Where the blocks rest after request {last}")


def bytes_at_rest(steps: pl.DataFrame, *, step: int | None = None) -> Any:
    """Draw the bytes at rest in each tier after each request; a rule marks ``step``.

    ``steps`` has ``step`` and a column of bytes for each tier, named as it is. Raises RunError where it has none.
    """
    colors = {tier.name: tier.color for tier in tiers() if tier is not LIVE and tier.name in steps.columns}
    require(steps, "step", *(colors or [tier.name for tier in tiers_at_rest()]))
    data = steps.select("step", *colors).unpivot(index="step", variable_name="tier", value_name="bytes")
    chart = (
        alt.Chart(data.with_columns(pl.col("bytes") / 1e6))
        .mark_line(point=True, strokeWidth=2.4)
        .encode(
            x=alt.X("step:Q", title="request", axis=count_axis(data["step"]), scale=alt.Scale(nice=False)),
            y=alt.Y("bytes:Q", title="KV at rest (MB)", scale=alt.Scale(zero=True)),
            color=_shade(colors, sort=None),
            tooltip=["step:Q", "tier:N", alt.Tooltip("bytes:Q", title="MB", format=".2f")],
        )
    )
    layers = [chart]
    if step is not None:
        at = alt.Chart(pl.DataFrame({"step": [step]}))
        layers.append(at.mark_rule(color=GREY, strokeDash=[4, 3]).encode(x="step:Q"))
    return styled(alt.layer(*layers).properties(width=WIDTH, height=200), "KV at rest by tier")


def _shade(colors: Mapping[str, str], **more: Any) -> alt.Color:
    """Return the colour channel of these tiers, in their order."""
    return alt.Color("tier:N", title=None, scale=alt.Scale(domain=list(colors), range=list(colors.values())), **more)


def _ends(rest: pl.DataFrame, tier: str, last: float) -> list[tuple[float, float]]:
    """Return the two ends of a line: nothing at the start, and the last value at the end."""
    held = rest.filter(pl.col("tier") == tier)["mb"]
    return [(0.0, 0.0), (last, float(held[-1]) if len(held) else 0.0)]
