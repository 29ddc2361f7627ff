"""Figures: functions from frames to Altair charts. They know rows and events, no decoder and no policy objects.

`rows` is `Results.frame()`; event frames are `Results.events(kind)`, with `policy` and the other tags as columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import polars as pl

from kvlab.charts.colors import policy_colors
from kvlab.charts.style import WIDTH, color, require, styled
from kvlab.errors import RunError

MAX_POINTS = 800  # of one line over time: more cannot be seen and makes a page heavy
MAX_ROWS = 4500  # of all lines together: Altair refuses 5,000
INSTANT = 1e-6  # seconds
MAX_LAYERS, MAX_HEADS = 6, 4  # panels of the eviction map
_GREY = "#8a919b"


def ttft_by_turn(rows: pl.DataFrame, *, log: bool = False) -> alt.LayerChart:
    """Time to first token at each turn, a line a policy; diamonds are first turns after a restart."""
    data = _turn_means(rows, "ttft_ms")
    scale = alt.Scale(type="log", nice=True) if log else alt.Scale(zero=True, nice=True)
    y = alt.Y("value:Q", title="time to first token (ms)", scale=scale)
    chart = _lines(data, y, "ms", _bands(data, scale))
    restarts = (
        alt.Chart(data.filter(pl.col("phase") == "restart"))
        .mark_point(shape="diamond", size=170, filled=True, opacity=1, stroke="white", strokeWidth=1.5)
        .encode(x=_turn(), y=y, color=color(data), tooltip=_tooltips("ms"))
    )
    layers = [chart, restarts] if "restart" in data["phase"] else [chart]
    note = ["Diamond: the first turn after the process was restarted."] if len(layers) > 1 else []
    return styled(alt.layer(*layers), "Time to first token by turn", note)


def cached_tokens_by_turn(rows: pl.DataFrame) -> alt.LayerChart:
    """Prompt tokens that were not recomputed, by turn; the dashed line is the prompt, the most that could be."""
    data = _turn_means(rows, "cached_tokens")
    prompt = _turn_means(rows, "prompt_tokens").group_by("turn").agg(pl.col("value").mean()).sort("turn")
    y = alt.Y("value:Q", title="tokens")
    whole = (
        alt.Chart(prompt)
        .mark_line(strokeDash=[5, 4], color=_GREY)
        .encode(
            x=_turn(),
            y=y,
            tooltip=[alt.Tooltip("turn:Q"), alt.Tooltip("value:Q", title="prompt tokens", format=",.0f")],
        )
    )
    return styled(alt.layer(whole, _lines(data, y, "tokens")), "Cached tokens by turn", ["Dashed: the whole prompt."])


def kv_bytes_over_time(
    tokens: pl.DataFrame, finished: pl.DataFrame | None = None, submitted: pl.DataFrame | None = None
) -> alt.LayerChart:
    """Live KV of all running requests against the time since each policy's first event.

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


def eviction_map(
    evicted: pl.DataFrame,
    *,
    request: int | None = None,
    length: int | None = None,
    steps: int | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> alt.FacetChart:
    """Which positions had left the live KV at which decode step, a panel per layer (down) and KV head (across).

    `evicted` are `evicted` events (`request`, `layer`, `head`, `position`, `step`) of one policy. `request` defaults to
    the one that lost most. `length` positions (of prompt and answer) and `steps` decode steps are shown, where they
    are known; else as many as there are evictions in. Of many layers and heads, a few are shown unless they are named.
    """
    require(evicted, "request", "layer", "head", "position", "step")
    if evicted.is_empty():
        raise RunError("nothing was evicted: choose a policy that evicts, or a smaller budget")
    if request is None:
        request = evicted.group_by("request").len().sort("len", "request", descending=True)["request"][0]
    data = evicted.filter(pl.col("request") == request)
    for name, wanted, most in (("layer", layers, MAX_LAYERS), ("head", heads, MAX_HEADS)):
        data = data.filter(pl.col(name).is_in(_evenly(data[name], most) if wanted is None else list(wanted)))
    if data.is_empty():
        raise RunError(f"request {request} has no evictions in these layers and heads")
    end: Any = data["position"].max()
    last: Any = data["step"].max()
    until = max(last + 1, steps or 0)
    n_heads, n_layers = data["head"].n_unique(), data["layer"].n_unique()
    width = max(130, min(WIDTH, 620 // n_heads))
    runs = _runs(data).with_columns(pl.lit(until).alias("until"))
    # Inline, because Altair refuses tables of more than 5,000 rows otherwise.
    base = alt.Chart(alt.InlineData(values=runs.to_dicts()), width=width, height=max(46, min(160, 330 // n_layers)))
    positions = alt.Scale(domain=[0, max(length or 0, end + 1)], nice=False)
    down = alt.Scale(domain=[0, until], reverse=True, nice=False)
    shades = alt.Scale(scheme="orangered", domain=[-max(1, until // 2), until])
    rects = base.mark_rect(stroke=None, clip=True).encode(
        x=alt.X("start:Q", title="position in the sequence", scale=positions),
        x2="stop:Q",
        y=alt.Y("step:Q", title="step", scale=down, axis=alt.Axis(tickMinStep=1, tickCount=4)),
        y2="until:Q",
        color=alt.Color("step:Q", scale=shades, legend=None),
        tooltip=[
            alt.Tooltip("start:Q", title="from position"),
            alt.Tooltip("stop:Q", title="to, exclusive"),
            alt.Tooltip("step:Q"),
        ],
    )
    header = alt.Header(labelExpr="'layer ' + datum.value", labelAngle=0, labelAlign="left", title=None)
    facets = rects.facet(
        row=alt.Row("layer:O", header=header),
        column=alt.Column("head:O", header=alt.Header(labelExpr="'KV head ' + datum.value", title=None)),
        spacing=10,
    )
    note = ["Coloured: gone from that decode step on (step 0 is the end of the prompt). Grey: still in the cache."]
    return styled(facets, f"What was evicted, request {request}", note, fill="#e9ecf0")


def accuracy_by_policy(rows: pl.DataFrame) -> alt.LayerChart | alt.FacetChart:
    """Mean accuracy of each policy, a group for each kind of question where the rows name kinds."""
    data = rows.filter(pl.col("metric") == "accuracy").with_columns(pl.col("kind").fill_null("all"))
    if data.is_empty():
        raise RunError("these rows have no accuracy: the workload has no known answers")
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


def _lines(data: pl.DataFrame, y: alt.Y, unit: str, *under: alt.Chart) -> Any:
    """A line with points a policy. Earlier policies are drawn thicker, so that equal lines are all seen."""
    order = list(policy_colors(data["policy"].to_list()))
    base = alt.Chart(data).encode(x=_turn(), y=y, color=color(data), tooltip=_tooltips(unit))
    lines = []
    for i, policy in enumerate(order):
        width = 1.7 + 1.3 * (len(order) - 1 - i)
        point = alt.OverlayMarkDef(size=0.8 * (width + 3.5) ** 2, filled=True, opacity=1)
        line = base.mark_line(strokeWidth=width, strokeCap="round", strokeJoin="round", point=point)
        lines.append(line.transform_filter(alt.datum.policy == policy))
    return alt.layer(*under, *lines)


def _bands(data: pl.DataFrame, scale: alt.Scale) -> alt.Chart:
    """From the least to the greatest of the repeats (other conversations, other seeds)."""
    repeated = data.filter(pl.col("count") > 1)
    return (
        alt.Chart(repeated)
        .mark_area(opacity=0.15)
        .encode(x=_turn(), y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color(data))
    )


def _turn() -> alt.X:
    return alt.X(
        "turn:Q", title="turn", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False, padding=8)
    )


def _tooltips(unit: str) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("policy:N"),
        alt.Tooltip("turn:Q"),
        alt.Tooltip("phase:N"),
        alt.Tooltip("value:Q", title=unit, format=",.1f"),
        alt.Tooltip("count:Q", title="of requests"),
    ]


def _turn_means(rows: pl.DataFrame, metric: str) -> pl.DataFrame:
    """`policy`, `turn`, `phase`, mean `value` with `low`, `high` and `count`; policies in the order of the rows."""
    require(rows, "policy", "metric", "turn", "phase", "value")
    found = rows.filter((pl.col("metric") == metric) & pl.col("turn").is_not_null())
    if found.is_empty():
        raise RunError(f"these rows have no {metric} by turn")
    value = pl.col("value")
    groups = found.group_by("policy", "turn", maintain_order=True)
    return groups.agg(
        pl.col("phase").first(),
        value.mean(),
        value.min().alias("low"),
        value.max().alias("high"),
        pl.len().alias("count"),
    )


def running_total(
    tokens: pl.DataFrame, finished: pl.DataFrame | None, submitted: pl.DataFrame | None, most: int
) -> pl.DataFrame:
    """`policy`, `seconds`, `kv_bytes` summed over the requests that run at that moment, at `most` moments at most."""
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


def _evenly(values: pl.Series, most: int) -> list[Any]:
    """The distinct values, or `most` of them from the first to the last."""
    every = values.unique().sort().to_list()
    if len(every) <= most:
        return every
    return [every[round(i * (len(every) - 1) / (most - 1))] for i in range(most)]


def _runs(data: pl.DataFrame) -> pl.DataFrame:
    """Neighbouring positions that left a head at the same step, as half-open runs `start`, `stop`."""
    keys = ["layer", "head", "step"]
    ordered = data.select(*keys, "position").unique().sort(*keys, "position")
    run = (pl.col("position") - pl.int_range(pl.len()).over(keys)).alias("run")
    groups = ordered.with_columns(run).group_by(*keys, "run", maintain_order=True)
    return groups.agg(pl.col("position").min().alias("start"), (pl.col("position").max() + 1).alias("stop")).drop("run")
