"""KV at rest: where each block is, and how full the tiers are over time."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.style import WIDTH, require, styled
from kvlab.errors import RunError

TIERS = {"ram": "#2f6db5", "ssd": "#1c9a76", "gone": "#e3e6ea"}


def block_map(blocks: pl.DataFrame, *, step: int | None = None) -> Any:
    """Every block of every conversation, coloured by the tier it rests in after a request (None: the last).

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
            color=alt.Color(
                "tier:N", title=None, scale=alt.Scale(domain=list(TIERS), range=list(TIERS.values())), sort=None
            ),
            tooltip=["conversation:N", "tier:N", alt.Tooltip("start:Q", title="from block"),
                     alt.Tooltip("stop:Q", title="to, exclusive")],
        )
        .properties(width=WIDTH, height=max(60, 30 * len(order)))
    )  # fmt: skip
    return styled(chart, f"Where the blocks rest after request {last}")


def tier_bytes(steps: pl.DataFrame, *, step: int | None = None) -> Any:
    """Bytes at rest by tier after each request (``steps``: ``step``, ``ram``, ``ssd``); a rule marks ``step``."""
    require(steps, "step", "ram", "ssd")
    data = steps.select("step", "ram", "ssd").unpivot(index="step", variable_name="tier", value_name="bytes")
    colors = {tier: TIERS[tier] for tier in ("ram", "ssd")}
    chart = (
        alt.Chart(data.with_columns(pl.col("bytes") / 1e6))
        .mark_line(point=True, strokeWidth=2.4)
        .encode(
            x=alt.X("step:Q", title="request", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False)),
            y=alt.Y("bytes:Q", title="KV at rest (MB)", scale=alt.Scale(zero=True)),
            color=alt.Color(
                "tier:N", title=None, scale=alt.Scale(domain=list(colors), range=list(colors.values())), sort=None
            ),
            tooltip=["step:Q", "tier:N", alt.Tooltip("bytes:Q", title="MB", format=".2f")],
        )
    )
    layers = [chart]
    if step is not None:
        mark = (
            alt.Chart(pl.DataFrame({"step": [step]})).mark_rule(color="#8a919b", strokeDash=[4, 3]).encode(x="step:Q")
        )
        layers.append(mark)
    return styled(alt.layer(*layers).properties(width=WIDTH, height=200), "KV at rest by tier")
