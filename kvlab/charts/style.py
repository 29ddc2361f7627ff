"""The common style of all charts: sizes, fonts, colours; and the check of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import policy_colors
from kvlab.charts.display import use_in_notebooks
from kvlab.errors import RunError

use_in_notebooks()
WIDTH, HEIGHT = 560, 300
GREY = "#8a919b"  # of lines that only guide the eye


def require(frame: pl.DataFrame, *names: str) -> None:
    """Raise RunError where the frame lacks one of the columns."""
    if missing := [name for name in names if name not in frame.columns]:
        raise RunError(f"the frame has no column {missing[0]!r}; this chart needs {', '.join(names)}")


def color(data: pl.DataFrame, *, legend: bool = True, points: bool = False) -> alt.Color:
    """Return the colour channel: a fixed colour for each policy, in the order of the rows; for lines or points."""
    colors = policy_colors(data["policy"].to_list())
    scale = alt.Scale(domain=list(colors), range=list(colors.values()))
    per_line = 5 if sum(map(len, colors)) < 60 else 2
    stroke: dict[str, Any] = {"symbolType": "stroke", "symbolStrokeWidth": 4, "symbolOpacity": 1}
    symbol: dict[str, Any] = {"symbolType": "circle", "symbolSize": 120, "symbolOpacity": 1} if points else stroke
    shown = alt.Legend(labelLimit=320, columns=per_line, **symbol) if legend else None
    return alt.Color("policy:N", title=None, scale=scale, legend=shown)


def styled(chart: Any, title: str, note: Sequence[str] = (), *, fill: str | None = None) -> Any:
    """Set sizes, fonts and the title, the same for every figure."""
    if isinstance(chart, alt.LayerChart) and chart.width is alt.Undefined:
        chart = chart.properties(width=WIDTH, height=HEIGHT)
    params = alt.TitleParams(title, subtitle=list(note), anchor="start", fontSize=15, offset=12)
    params.subtitleFontSize, params.subtitleColor = 11.5, "#666"
    chart = chart.properties(title=params).configure_legend(labelFontSize=12, orient="top")
    chart = chart.configure_view(stroke=None, **({"fill": fill} if fill else {}))
    return chart.configure_axis(
        grid=fill is None,
        gridColor="#edeff2",
        domainColor="#b6bcc5",
        tickColor="#b6bcc5",
        labelColor="#444",
        labelFontSize=11,
        titleColor="#444",
        titleFontSize=12,
        titleFontWeight=500,
    )
