"""Many sequences at once: throughput and live KV, from the rows of ``kvlab bench decode`` or of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import SOFT_INK
from kvlab.charts.style import WIDTH, Look, legend_of, require, styled
from kvlab.errors import RunError

MOST_IN_ONE_PANEL = 4  # policies that may have a line for each workload


def throughput_by_concurrency(rows: pl.DataFrame, *, among: Sequence[str] | None = None) -> Any:
    """Draw tokens a second of all sequences against how many decode side by side, a line a policy and workload."""
    title = "Throughput by concurrency"
    return _by_concurrency(rows, "tokens_per_s", "tokens a second, all together", title, 1.0, among)


def live_bytes_by_concurrency(rows: pl.DataFrame, *, among: Sequence[str] | None = None) -> Any:
    """Draw live KV in MB against how many sequences decode side by side."""
    return _by_concurrency(rows, "kv_bytes_live", "live KV (MB)", "Live KV by concurrency", 1e-6, among)


def _by_concurrency(
    rows: pl.DataFrame, metric: str, axis: str, title: str, unit: float, among: Sequence[str] | None
) -> Any:
    require(rows, "policy", "workload", "metric", "value", "n", "model")
    data = rows.filter(pl.col("metric") == metric).select("policy", "workload", "n", "model", "value")
    if data.is_empty():
        raise RunError(f"no {metric} rows: this chart shows the rows of `kvlab bench decode --json`")
    value, keys = pl.col("value") * unit, ["policy", "workload", "n", "model"]
    data = data.group_by(keys, maintain_order=True).agg(
        value.median(), value.min().alias("low"), value.max().alias("high"), pl.len().alias("repeats")
    )
    look = Look(data, among)
    data = look.labelled(data)
    counts = data["n"].unique().sort()
    workloads = data["workload"].unique(maintain_order=True).to_list()
    apart = len(workloads) > 1 and len(look.labels) > MOST_IN_ONE_PANEL
    panel = pl.format("{}, {}", "model", "workload") if apart else pl.col("model")
    data = data.with_columns(panel.alias("panel"))
    base = alt.Chart(data).encode(
        x=alt.X("n:Q", title="sequences side by side", axis=_counts(counts), scale=_log2(counts)),
        y=alt.Y("value:Q", title=axis, scale=alt.Scale(zero=True)),
        color=look.color(),
        tooltip=["policy:N", "workload:N", "model:N", "n:Q", alt.Tooltip("value:Q", format=",.1f")],
    )
    lines = base.mark_line(strokeWidth=2).encode(detail=["workload:N", "model:N"], **look.dash())
    points = base.mark_point(size=70, filled=True, opacity=1)
    if len(workloads) > 1 and not apart:
        points = points.encode(shape=alt.Shape("workload:N", title=None, legend=_shapes_legend(workloads)))
    layers = [lines, points]
    note: list[str] = []
    if (data["repeats"] > 1).any():
        layers.append(base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q"))
        note = ["Bars: least to greatest of the repeats."]
    chart = alt.layer(*layers).properties(width=WIDTH if data["panel"].n_unique() == 1 else WIDTH // 2, height=260)
    return styled(chart.facet(alt.Facet("panel:N", title=None), columns=2), title, note)


def _counts(counts: pl.Series) -> alt.Axis:
    """Return an axis with a tick at each measured number, or at powers of two where they are many."""
    if len(counts) <= 12:
        return alt.Axis(values=counts.to_list(), format=",d")
    low, high = int(counts[0]), int(counts[-1])
    return alt.Axis(values=[2**i for i in range(high.bit_length()) if low <= 2**i <= high], format=",d")


def _log2(counts: pl.Series) -> alt.Scale:
    """Return a logarithmic scale of these numbers; a single one stands in its middle."""
    low, high = float(counts[0]), float(counts[-1])
    domain = [low / 2, high * 2] if low == high else [low / 1.05, high * 1.05]
    return alt.Scale(type="log", base=2, nice=False, domain=domain)


def _shapes_legend(workloads: list[str]) -> alt.Legend:
    legend = legend_of(workloads, points=True)
    legend.symbolFillColor = legend.symbolStrokeColor = SOFT_INK.light
    return legend
