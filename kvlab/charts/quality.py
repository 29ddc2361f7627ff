"""How good the answers are, and what their quality costs in bytes of live KV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import SOFT_INK
from kvlab.charts.direct_labels import GAP, Anchor, Placed, along, beside_points, name_marks
from kvlab.charts.method_channels import method_channels, of_lines, of_points
from kvlab.charts.policy_styles import method_of
from kvlab.charts.style import AXIS_LABEL_PX, HEIGHT, WIDTH, Look, require, styled
from kvlab.errors import RunError

QUALITY = {
    "accuracy": "right answers",
    "kl": "KL from the uncached model (nats)",
    "exact": "answers equal token for token",
}
KL_CONSTANT = 1e-4  # nats, below which the axis of a KL is linear
SHARES_TOP = 1.05
"""Upper end of an axis of shares, so that a point at 100 % is whole."""


def accuracy_by_policy(rows: pl.DataFrame, *, among: Sequence[str] | None = None) -> alt.LayerChart | alt.FacetChart:
    """Draw the mean accuracy of each policy, a panel for each kind of question where the rows name kinds."""
    data = _answers(rows).with_columns(pl.col("kind").fill_null("all"))
    look = Look(data, among)
    groups = look.labelled(data).group_by("policy", "kind", maintain_order=True)
    means = groups.agg(pl.col("value").mean(), pl.len().alias("questions"), pl.col("value").sum().alias("right"))
    means = means.with_columns(pl.format("{}/{}", pl.col("right").round().cast(pl.Int64), "questions").alias("score"))
    kinds = means["kind"].unique(maintain_order=True).to_list()
    width = WIDTH * 2 // 3 if len(kinds) == 1 else max(130, min(220, 560 // len(kinds)))
    base = alt.Chart(means, width=width, height=24 * max(2, len(look.labels))).encode(
        y=alt.Y("policy:N", sort=look.labels, title=None, axis=alt.Axis(labelLimit=AXIS_LABEL_PX)),
        x=alt.X("value:Q", title="right answers", scale=alt.Scale(domain=[0, 1.2]), axis=_percents()),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("kind:N"),
            alt.Tooltip("value:Q", format=".2f"),
            alt.Tooltip("questions:Q"),
        ],
    )
    bars = base.mark_bar(cornerRadiusEnd=2, size=15).encode(color=look.color(legend=False))
    scores = base.mark_text(align="left", dx=5, fontSize=10, color=SOFT_INK.light).encode(text="score:N")
    if len(kinds) == 1:
        return styled(alt.layer(bars, scores), "Accuracy by policy")
    header = alt.Header(labelFontSize=12, labelFontWeight=600)
    facet = alt.Facet("kind:N", sort=kinds, title=None, header=header)
    panels = alt.layer(bars, scores).facet(facet=facet, columns=min(len(kinds), 3), spacing=14)
    return styled(panels, "Accuracy by policy and kind of question")


def quality_by_live_bytes(
    rows: pl.DataFrame, settings: Mapping[str, str] | None = None, *, among: Sequence[str] | None = None
) -> Any:
    """Draw mean accuracy against mean live KV, a line for each method through its settings.

    A point is a policy; its bar goes from the least to the greatest of the seeds' means. A method is that of the most
    telling module (`kvlab.charts.policy_styles.method_of`), so that its line runs through its budgets, windows or bits;
    `settings` (policy to text) labels its points. Its colour is that of its policies in the other charts.
    """
    require(rows, "policy", "metric", "value", "turn", "seed", "kind")
    means = _by_policy(rows).with_columns(
        pl.col("policy").replace_strict(dict(settings or {}), default="", return_dtype=pl.String).alias("setting")
    )
    look = Look(means, among)
    methods = method_channels(means, look.styles)
    widest: Any = means["bytes"].max()
    x_top = 1.08 * widest or 1.0
    base = alt.Chart(look.labelled(means)).encode(
        x=_bytes([0, x_top]),
        y=alt.Y("accuracy:Q", title=QUALITY["accuracy"], axis=_percents(), scale=_shares()),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("bytes:Q", title="live KV (MB)", format=".2f"),
            alt.Tooltip("accuracy:Q", format=".0%"),
            alt.Tooltip("questions:Q"),
        ],
    )
    errors = base.mark_rule(strokeWidth=1.4, opacity=0.7).encode(
        y=alt.Y("low:Q", title=QUALITY["accuracy"]), y2="high:Q", tooltip=alt.value(None), color=methods["color"]
    )
    lines = base.mark_line(strokeWidth=2).encode(order="bytes:Q", **of_lines(methods))
    points = base.mark_point(filled=True, size=80, opacity=1).encode(**of_points(methods))
    labels = name_marks(_settings(means, x_top, SHARES_TOP), alt.value(SOFT_INK.light))
    note = ["A point is a policy, a line a method; bars: least and greatest of the seeds."]
    return styled(alt.layer(errors, lines, points, *labels), "Right answers by live KV", note)


def _settings(means: pl.DataFrame, x_top: float, y_top: float) -> list[Placed]:
    """Return the settings at their places, which cover no point, bar, line or other setting."""
    data = means.with_columns(
        x=WIDTH * pl.col("bytes") / x_top,
        **{name: HEIGHT * (1 - pl.col(name) / y_top) for name in ("accuracy", "low", "high")},
    )
    anchors, taken = [], []
    for x, y, low, high, setting in data.select("x", "accuracy", "low", "high", "setting").iter_rows():
        taken.append((x - 2, high, x + 2, low))
        if setting:
            anchors.append(Anchor(x, y, setting))
        else:
            taken.append((x - GAP, y - GAP, x + GAP, y + GAP))
    for line in data.sort("bytes").partition_by("method", maintain_order=True):
        for start, stop in pairwise(line.select("x", "accuracy").iter_rows()):
            taken += along(start, stop)
    return beside_points(anchors, WIDTH, HEIGHT, blocked=taken)


def quality_by_bytes(rows: pl.DataFrame, metric: str = "accuracy", *, among: Sequence[str] | None = None) -> Any:
    """Draw mean quality against mean live KV, a point a policy: up and left is better, for ``kl`` down and left.

    ``rows`` have ``kv_bytes_live`` and the metric, one of QUALITY. Raises RunError where they have not.
    """
    require(rows, "policy", "metric", "value", "turn")
    if metric not in QUALITY:
        raise RunError(f"no quality {metric!r}; there are {', '.join(QUALITY)}")
    known = _answers(rows) if metric == "accuracy" else _of_items(rows).filter(pl.col("metric") == metric)
    found = known.group_by("policy").agg(pl.col("value").mean().alias("quality"))
    data = live_megabytes(rows).join(found, on="policy", maintain_order="left")
    if data.is_empty():
        raise RunError(f"these rows have no {metric} beside kv_bytes_live of one policy")
    look = Look(data, among)
    data = look.labelled(data)
    widest, worst = float(data["bytes"].max() or 0), float(data["quality"].max() or 0)  # type: ignore[arg-type]
    x_top, y_top = 1.05 * widest or 1.0, (1.1 * worst or 1e-3) if metric == "kl" else SHARES_TOP
    scale = (
        alt.Scale(type="symlog", constant=KL_CONSTANT, domain=[0, y_top], nice=False) if metric == "kl" else _shares()
    )
    axis = alt.Axis(values=_decades(y_top), format="~g") if metric == "kl" else _percents()
    base = alt.Chart(data).encode(
        x=_bytes([0, x_top]),
        y=alt.Y("quality:Q", title=QUALITY[metric], scale=scale, axis=axis),
        tooltip=[
            alt.Tooltip("policy:N"),
            alt.Tooltip("bytes:Q", title="live KV (MB)", format=".3f"),
            alt.Tooltip("quality:Q", title=metric, format=".4f"),
        ],
    )
    points = base.mark_point(size=130, filled=True, opacity=1).encode(
        color=look.color(legend=False), **look.shape(legend=False)
    )

    def up(value: float) -> float:
        height = math.log1p(value / KL_CONSTANT) / math.log1p(y_top / KL_CONSTANT) if metric == "kl" else value / y_top
        return HEIGHT * (1 - height)

    anchors = [
        Anchor(WIDTH * size / x_top, up(quality), policy)
        for policy, size, quality in data.select("policy", "bytes", "quality").iter_rows()
    ]
    names = name_marks(beside_points(anchors, WIDTH, HEIGHT), look.color(legend=False))
    return styled(alt.layer(points, *names), f"Quality against bytes: {QUALITY[metric]}")


def _of_items(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows without those by position, which are of all items together."""
    return rows.filter(pl.col("position").is_null()) if "position" in rows.columns else rows


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
        .with_columns(pl.col("policy").map_elements(method_of, return_dtype=pl.String).alias("method"))
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


def _bytes(domain: Sequence[float]) -> alt.X:
    return alt.X("bytes:Q", title="live KV of a sequence (MB)", scale=alt.Scale(domain=list(domain), nice=False))


def _shares() -> alt.Scale:
    """Return a scale from 0 to 1 with space for a point at the top."""
    return alt.Scale(domain=[0, SHARES_TOP], nice=False)


def _percents() -> alt.Axis:
    return alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], format="%")


def _decades(top: float) -> list[float]:
    """Return 0 and the powers of ten up to `top`, from where the axis of a KL is logarithmic."""
    return [0.0, *(10.0**power for power in range(-3, 3) if 10.0**power <= top)]
