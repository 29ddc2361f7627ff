"""Many sequences at once: throughput and live KV, from the rows of ``kvlab bench decode`` or of a sweep."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.style import WIDTH, color, require, styled
from kvlab.errors import RunError


def throughput_by_concurrency(rows: pl.DataFrame) -> Any:
    """Draw tokens a second of all sequences against how many decode side by side, a line a policy and workload."""
    return _by_concurrency(rows, "tokens_per_s", "tokens a second, all together", "Throughput by concurrency", 1.0)


def live_bytes_by_concurrency(rows: pl.DataFrame) -> Any:
    """Draw live KV in MB against how many sequences decode side by side."""
    return _by_concurrency(rows, "kv_bytes_live", "live KV (MB)", "Live KV by concurrency", 1e-6)


def _by_concurrency(rows: pl.DataFrame, metric: str, axis: str, title: str, unit: float) -> Any:
    require(rows, "policy", "workload", "metric", "value", "n", "model")
    data = rows.filter(pl.col("metric") == metric).select("policy", "workload", "n", "model", "value")
    if data.is_empty():
        raise RunError(f"no {metric} rows: this chart shows the rows of `kvlab bench decode --json`")
    value, keys = pl.col("value") * unit, ["policy", "workload", "n", "model"]
    data = data.group_by(keys, maintain_order=True).agg(
        value.mean(), value.min().alias("low"), value.max().alias("high"), pl.len().alias("repeats")
    )
    base = alt.Chart(data).encode(
        x=alt.X("n:Q", title="sequences side by side", scale=alt.Scale(type="log", base=2, nice=False)),
        y=alt.Y("value:Q", title=axis, scale=alt.Scale(zero=True)),
        color=color(data),
        shape=alt.Shape("workload:N", title=None),
        tooltip=["policy:N", "workload:N", "model:N", "n:Q", alt.Tooltip("value:Q", format=",.1f")],
    )
    lines = base.mark_line(strokeWidth=2).encode(detail=["workload:N", "model:N"])
    layers = [lines, base.mark_point(size=70, filled=True)]
    note: list[str] = []
    if (data["repeats"] > 1).any():
        layers.append(base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q", shape=alt.Undefined))
        note = ["Bars: least to greatest of the repeats."]
    chart = alt.layer(*layers).properties(width=WIDTH if data["model"].n_unique() == 1 else WIDTH // 2, height=260)
    return styled(chart.facet(alt.Facet("model:N", title=None)), title, note)
