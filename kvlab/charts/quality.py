"""Quality against bytes: what a retention method or a codec saves, and what it costs in answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.style import color, require, styled
from kvlab.errors import RunError


def quality_by_live_bytes(rows: pl.DataFrame, settings: Mapping[str, str] | None = None) -> Any:
    """Mean accuracy against mean live KV, a line for each method through its settings.

    A point is a policy; its bar goes from the least to the greatest of the seeds' means. Methods are told apart by the
    policy's first module, so that a method's line runs through its budgets, windows or bits; `settings` (policy to
    text) labels its points.
    """
    require(rows, "policy", "metric", "value", "seed", "kind")
    means = _by_policy(rows).with_columns(
        pl.col("policy").replace_strict(dict(settings or {}), default="", return_dtype=pl.String).alias("setting")
    )
    order = means["method"].unique(maintain_order=True).to_list()
    base = alt.Chart(means).encode(
        x=alt.X("bytes:Q", title="live KV of a sequence (MB)", scale=alt.Scale(zero=True)),
        y=alt.Y(
            "accuracy:Q",
            title="right answers",
            axis=alt.Axis(format="%"),
            scale=alt.Scale(domain=[0, 1.05], nice=False),
        ),
        color=color(means.with_columns(pl.col("method").alias("policy"))).copy(),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("bytes:Q", title="live KV (MB)", format=".2f"),
            alt.Tooltip("accuracy:Q", format=".0%"),
            alt.Tooltip("questions:Q"),
        ],
    )
    base.encoding.color.shorthand = "method:N"
    base.encoding.color.sort = order
    errors = base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(
        y=alt.Y("low:Q", title="right answers"), y2="high:Q", tooltip=alt.value(None)
    )
    lines = base.mark_line(strokeWidth=2).encode(order="bytes:Q")
    points = base.mark_point(filled=True, size=80, opacity=1)
    labels = base.mark_text(align="left", dx=8, dy=9, fontSize=10).encode(text="setting:N")
    note = ["A point is a policy, a line a method; bars: least and greatest of the seeds."]
    return styled(alt.layer(errors, lines, points, labels), "Right answers by live KV", note)


def _by_policy(rows: pl.DataFrame) -> pl.DataFrame:
    """`policy`, `method`, mean `bytes` (MB) and `accuracy`, its `low` and `high` over seeds, `questions`."""
    answers = rows.filter(pl.col("metric") == "accuracy")
    if answers.is_empty():
        raise RunError("these rows have no accuracy: the workload has no known answers")
    by_seed = answers.group_by("policy", "seed", maintain_order=True).agg(pl.col("value").mean(), pl.len().alias("n"))
    quality = by_seed.group_by("policy", maintain_order=True).agg(
        (pl.col("value") * pl.col("n")).sum() / pl.col("n").sum(),
        pl.col("value").min().alias("low"),
        pl.col("value").max().alias("high"),
        pl.col("n").sum().alias("questions"),
    )
    live = (pl.col("metric") == "kv_bytes_live") & pl.col("turn").is_not_null()
    held = rows.filter(live).group_by("policy").agg((pl.col("value").mean() / 1e6).alias("bytes"))
    return (
        quality.rename({"value": "accuracy"})
        .join(held, on="policy", how="inner", maintain_order="left")
        .with_columns(pl.col("policy").str.extract(r"^(\w+)").alias("method"))
    )
