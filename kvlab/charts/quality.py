"""How good the answers are, and what their quality costs in bytes of live KV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import policy_colors
from kvlab.charts.style import color, require, styled
from kvlab.errors import RunError

QUALITY = {
    "accuracy": "right answers",
    "kl": "KL from the uncached model (nats)",
    "exact": "answers equal token for token",
}


def accuracy_by_policy(rows: pl.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Draw the mean accuracy of each policy, a group for each kind of question where the rows name kinds."""
    data = _answers(rows).with_columns(pl.col("kind").fill_null("all"))
    means = data.group_by("policy", "kind", maintain_order=True).agg(
        pl.col("value").mean(), pl.len().alias("questions"), pl.col("value").sum().alias("right")
    )
    means = means.with_columns(pl.format("{}/{}", pl.col("right").round().cast(pl.Int64), "questions").alias("score"))
    order = list(policy_colors(data["policy"].to_list()))
    base = alt.Chart(means, width=max(110, 30 * len(order)), height=230).encode(
        x=alt.X("policy:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40, labelLimit=150)),
        y=alt.Y("value:Q", title="right answers", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("kind:N"),
            alt.Tooltip("value:Q", format=".2f"),
            alt.Tooltip("questions:Q"),
        ],
    )
    bars = base.mark_bar(cornerRadiusEnd=2).encode(color=color(data, legend=False))
    layered = alt.layer(bars, base.mark_text(dy=-6, fontSize=10, color="#444").encode(text="score:N"))
    if means["kind"].n_unique() == 1:
        return styled(layered, "Accuracy by policy")
    kinds = means["kind"].unique(maintain_order=True).to_list()
    column = alt.Column("kind:N", sort=kinds, title=None, header=alt.Header(labelFontSize=12, labelFontWeight=600))
    return styled(layered.facet(column=column, spacing=14), "Accuracy by policy and kind of question")


def quality_by_live_bytes(rows: pl.DataFrame, settings: Mapping[str, str] | None = None) -> Any:
    """Draw mean accuracy against mean live KV, a line for each method through its settings.

    A point is a policy; its bar goes from the least to the greatest of the seeds' means. Methods are told apart by the
    policy's first module, so that a method's line runs through its budgets, windows or bits; `settings` (policy to
    text) labels its points.
    """
    require(rows, "policy", "metric", "value", "turn", "seed", "kind")
    means = _by_policy(rows).with_columns(
        pl.col("policy").replace_strict(dict(settings or {}), default="", return_dtype=pl.String).alias("setting")
    )
    order = means["method"].unique(maintain_order=True).to_list()
    base = alt.Chart(means).encode(
        x=_bytes(),
        y=alt.Y("accuracy:Q", title=QUALITY["accuracy"], axis=alt.Axis(format="%"), scale=_shares()),
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
        y=alt.Y("low:Q", title=QUALITY["accuracy"]), y2="high:Q", tooltip=alt.value(None)
    )
    lines = base.mark_line(strokeWidth=2).encode(order="bytes:Q")
    points = base.mark_point(filled=True, size=80, opacity=1)
    labels = base.mark_text(align="left", dx=8, dy=9, fontSize=10).encode(text="setting:N")
    note = ["A point is a policy, a line a method; bars: least and greatest of the seeds."]
    return styled(alt.layer(errors, lines, points, labels), "Right answers by live KV", note)


def quality_by_bytes(rows: pl.DataFrame, metric: str = "accuracy") -> Any:
    """Draw mean quality against mean live KV, a point a policy: up and left is better, for ``kl`` down and left.

    ``rows`` have ``kv_bytes_live`` and the metric, one of QUALITY. Raises RunError where they have not.
    """
    require(rows, "policy", "metric", "value", "turn")
    if metric not in QUALITY:
        raise RunError(f"no quality {metric!r}; there are {', '.join(QUALITY)}")
    known = _answers(rows) if metric == "accuracy" else rows.filter(pl.col("metric") == metric)
    found = known.group_by("policy").agg(pl.col("value").mean().alias("quality"))
    data = live_megabytes(rows).join(found, on="policy", maintain_order="left")
    if data.is_empty():
        raise RunError(f"these rows have no {metric} beside kv_bytes_live of one policy")
    scale = alt.Scale(type="symlog", constant=1e-4) if metric == "kl" else _shares()
    axis = alt.Axis(format="~g") if metric == "kl" else alt.Axis(format="%")
    base = alt.Chart(data).encode(
        x=_bytes(),
        y=alt.Y("quality:Q", title=QUALITY[metric], scale=scale, axis=axis),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("bytes:Q", title="live KV (MB)", format=".3f"),
            alt.Tooltip("quality:Q", title=metric, format=".4f"),
        ],
    )
    points = base.mark_point(size=150, filled=True, opacity=1).encode(color=color(data, points=True))
    return styled(alt.layer(points), f"Quality against bytes: {QUALITY[metric]}")


def live_megabytes(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `policy` and its mean `bytes` (MB) of live KV of one sequence, in the order of the rows."""
    live = rows.filter(pl.col("metric") == "kv_bytes_live")
    of_turns = live.filter(pl.col("turn").is_not_null())
    # Beside rows of turns, those without one are of all sequences together.
    held = live if of_turns.is_empty() else of_turns
    return held.group_by("policy", maintain_order=True).agg((pl.col("value").mean() / 1e6).alias("bytes"))


def _by_policy(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `policy`, `method`, mean `bytes` (MB) and `accuracy`, its `low` and `high` over seeds, `questions`."""
    seeds = _answers(rows).group_by("policy", "seed", maintain_order=True)
    by_seed = seeds.agg(pl.col("value").mean(), pl.len().alias("n"))
    quality = by_seed.group_by("policy", maintain_order=True).agg(
        (pl.col("value") * pl.col("n")).sum() / pl.col("n").sum(),
        pl.col("value").min().alias("low"),
        pl.col("value").max().alias("high"),
        pl.col("n").sum().alias("questions"),
    )
    return (
        quality.rename({"value": "accuracy"})
        .join(live_megabytes(rows), on="policy", how="inner", maintain_order="left")
        .with_columns(pl.col("policy").str.extract(r"^(\w+)").alias("method"))
    )


def _answers(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows that say whether an answer was right. Raises RunError where there are none that count."""
    answers = rows.filter(pl.col("metric") == "accuracy")
    if answers.is_empty():
        raise RunError("these rows have no accuracy: the workload has no known answers")
    counting = answers.filter(pl.col("void").is_null()) if "void" in answers.columns else answers
    if counting.is_empty():
        raise RunError("all accuracy of these rows is void: full itself fails the task, so it tells no policies apart")
    return counting


def _bytes() -> alt.X:
    return alt.X("bytes:Q", title="live KV of a sequence (MB)", scale=alt.Scale(zero=True))


def _shares() -> alt.Scale:
    """Return a scale from 0 to 1 with space for a point at the top."""
    return alt.Scale(domain=[0, 1.05], nice=False)
