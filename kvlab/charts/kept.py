"""What is left of the right answers where a part of the KV is left: a panel a workload, a line a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import SOFT_INK
from kvlab.charts.method_channels import method_channels, of_lines, of_points
from kvlab.charts.policy_styles import method_of, policy_styles
from kvlab.charts.style import require, styled
from kvlab.errors import RunError

PANEL_WIDTH, PANEL_HEIGHT = 300, 260
SHARES = [0, 0.25, 0.5, 0.75, 1]


def accuracy_by_kept_kv(summary: pl.DataFrame, titles: Mapping[str, str] | None = None) -> Any:
    """Draw accuracy against the share of KV that stays live, with 95 % intervals.

    ``summary`` is ``kvlab.results.kept_share.accuracy_by_kept_share(rows)``; ``titles`` name the panels by workload.
    A method's line runs through its settings; methods of one colour have dashes and shapes of their own.
    """
    require(summary, "workload", "policy", "kept", "accuracy", "low", "high", "items")
    if summary.is_empty():
        raise RunError("there is nothing to draw: the summary is empty")
    names = dict(titles or {})
    data = summary.with_columns(
        pl.col("policy").map_elements(method_of, return_dtype=pl.String).alias("method"),
        pl.col("workload").replace(names).alias("panel"),
    )
    panels = data["panel"].unique(maintain_order=True).to_list()
    channels = method_channels(data, policy_styles(data["policy"].unique(maintain_order=True)))
    width: dict[str, Any] = {
        "scale": alt.Scale(domain=[0, 1.03], nice=False),
        "axis": alt.Axis(values=SHARES, format="%"),
    }
    drawn = []
    for index, panel in enumerate(panels):
        named = alt.Axis(values=SHARES, format="%", labels=index == 0)
        title = "right answers" if index == 0 else None
        height: dict[str, Any] = {"title": title, "scale": alt.Scale(domain=[0, 1.05], nice=False), "axis": named}
        some = alt.Chart(data.filter(pl.col("panel") == panel), width=PANEL_WIDTH, height=PANEL_HEIGHT)
        base = some.encode(
            x=alt.X("kept:Q", title="live KV, of that of full", **width),
            y=alt.Y("accuracy:Q", **height),
            tooltip=[
                alt.Tooltip("policy:N"),
                alt.Tooltip("kept:Q", title="live KV", format=".0%"),
                alt.Tooltip("accuracy:Q", format=".0%"),
                alt.Tooltip("low:Q", format=".0%"),
                alt.Tooltip("high:Q", format=".0%"),
                alt.Tooltip("items:Q"),
            ],
        )
        bars = base.mark_rule(strokeWidth=1.4, opacity=0.6).encode(
            y=alt.Y("low:Q", **height), y2="high:Q", tooltip=alt.value(None), color=channels["color"]
        )
        lines = base.mark_line(strokeWidth=2).encode(order="kept:Q", **of_lines(channels))
        points = base.mark_point(filled=True, size=70, opacity=1).encode(**of_points(channels))
        name = alt.TitleParams(panel, fontSize=13, color=SOFT_INK.light)
        drawn.append(alt.layer(bars, lines, points, title=name))
    note = ["A point is a setting, a line a method; bars: 95 % confidence, by bootstrap over the questions."]
    return styled(alt.hconcat(*drawn, spacing=18), "Right answers by the KV that is left", note)
