"""The cost of each turn: a line a policy."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import policy_colors
from kvlab.charts.style import GREY, color, require, styled
from kvlab.errors import RunError


def ttft_by_turn(rows: pl.DataFrame, *, log: bool = False) -> alt.LayerChart:
    """Draw the time to first token at each turn, a line a policy; diamonds are first turns after a restart."""
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
    """Draw the prompt tokens that were not recomputed, by turn; the dashed line is the whole prompt."""
    data = _turn_means(rows, "cached_tokens")
    prompt = _turn_means(rows, "prompt_tokens").group_by("turn").agg(pl.col("value").mean()).sort("turn")
    y = alt.Y("value:Q", title="tokens")
    whole = (
        alt.Chart(prompt)
        .mark_line(strokeDash=[5, 4], color=GREY)
        .encode(
            x=_turn(),
            y=y,
            tooltip=[alt.Tooltip("turn:Q"), alt.Tooltip("value:Q", title="prompt tokens", format=",.0f")],
        )
    )
    return styled(alt.layer(whole, _lines(data, y, "tokens")), "Cached tokens by turn", ["Dashed: the whole prompt."])


def _lines(data: pl.DataFrame, y: alt.Y, unit: str, *under: alt.Chart) -> Any:
    """Draw a line with points for each policy. Earlier policies are drawn thicker, so that equal lines stay visible."""
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
    """Draw the range of the repeats (other conversations, other seeds), from the least to the greatest."""
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
    """Return `policy`, `turn`, `phase`, mean `value`, `low`, `high` and `count`; policies in the order of the rows."""
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
