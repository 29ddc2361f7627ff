"""The common style of all charts: sizes, fonts, colours; and the check of their frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import altair as alt
import polars as pl

from kvlab.charts.colors import DOMAIN, FAINT_INK, GRID, GUIDE, INK, PAGE, SOFT_INK
from kvlab.charts.display import use_in_notebooks
from kvlab.charts.policy_styles import DASHES, SHAPES, PolicyStyle, policy_styles
from kvlab.errors import RunError

use_in_notebooks()
WIDTH, HEIGHT = 560, 300
GREY = GUIDE.light  # of lines that only guide the eye
ROW_OF_LETTERS = 70  # a legend of more is a column at the right
LEGEND_PX, AXIS_LABEL_PX = 330, 480  # longest names
SPLIT_LONG = "length(datum.label) > 46 ? split(replace(datum.label, /[|]/g, '\\n|'), '\\n') : datum.label"
"""Write a long policy with a module a line."""


def require(frame: pl.DataFrame, *names: str) -> None:
    """Raise RunError where the frame lacks one of the columns."""
    if missing := [name for name in names if name not in frame.columns]:
        raise RunError(f"the frame has no column {missing[0]!r}; this chart needs {', '.join(names)}")


class Look:
    """The labels, colours, dashes and shapes of the policies of a frame.

    `among` are the policies of the whole set that the frame is a part of (`Results.policies`): its other charts then
    use the same. None: those of the frame.
    """

    def __init__(self, frame: pl.DataFrame, among: Sequence[str] | None = None) -> None:
        own = frame["policy"].unique(maintain_order=True).drop_nulls().to_list()
        styles = policy_styles([*(among or ()), *own])
        self.styles: dict[str, PolicyStyle] = {policy: styles[policy] for policy in own}

    def labelled(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with labels instead of specs in its column `policy`."""
        labels = {policy: style.label for policy, style in self.styles.items()}
        return frame.with_columns(pl.col("policy").replace_strict(labels, default=pl.col("policy")))

    @cached_property
    def labels(self) -> list[str]:
        """The labels, in the order of the frame."""
        return list(dict.fromkeys(style.label for style in self.styles.values()))

    @cached_property
    def has_variants(self) -> bool:
        """Whether policies share a colour, so that dashes or shapes must tell them apart."""
        return any(style.variant for style in self.styles.values())

    def color(self, *, legend: bool = True, points: bool = False) -> alt.Color:
        """Return the colour channel of labelled policies, for lines or for points."""
        shown = legend_of(self.labels, points=points) if legend else None
        return alt.Color("policy:N", title=None, scale=self._scale("color"), legend=shown)

    def dash(self, *, legend: bool = True) -> dict[str, Any]:
        """Return the dash channel where policies share a colour, as arguments of `encode`."""
        if not self.has_variants:
            return {}
        shown = legend_of(self.labels) if legend else None
        return {"strokeDash": alt.StrokeDash("policy:N", title=None, scale=self._scale("dash"), legend=shown)}

    def shape(self, *, legend: bool = True) -> dict[str, Any]:
        """Return the shape channel where policies share a colour, as arguments of `encode`."""
        if not self.has_variants:
            return {}
        shown = legend_of(self.labels, points=True) if legend else None
        return {"shape": alt.Shape("policy:N", title=None, scale=self._scale("shape"), legend=shown)}

    def _scale(self, channel: str) -> alt.Scale:
        looks: dict[str, Any] = {}
        for style in self.styles.values():
            shown = {"color": style.color, "dash": DASHES[style.variant], "shape": SHAPES[style.variant]}
            looks.setdefault(style.label, shown[channel])
        return alt.Scale(domain=list(looks), range=list(looks.values()))


def legend_of(labels: Sequence[str], *, points: bool = False) -> alt.Legend:
    """Return a legend over the chart where its labels fit one line, else at the right of it."""
    stroke: dict[str, Any] = {"symbolType": "stroke", "symbolStrokeWidth": 3, "symbolSize": 400, "symbolOpacity": 1}
    filled = {"symbolSize": 110, "symbolOpacity": 1}
    symbol: dict[str, Any] = filled if points else stroke
    fits = sum(len(label) + 4 for label in labels) <= ROW_OF_LETTERS
    where: dict[str, Any] = {"orient": "top", "columns": 5} if fits else {"orient": "right", "columns": 1}
    return alt.Legend(labelLimit=LEGEND_PX, labelExpr=SPLIT_LONG, **where, **symbol)


def styled(chart: Any, title: str, note: Sequence[str] = (), *, fill: str | None = None) -> Any:
    """Set sizes, fonts, colours and the title, the same for every figure."""
    if isinstance(chart, alt.LayerChart) and chart.width is alt.Undefined:
        chart = chart.properties(width=WIDTH, height=HEIGHT)
    params = alt.TitleParams(title, subtitle=list(note), anchor="start", fontSize=15, offset=12, color=INK.light)
    params.subtitleFontSize, params.subtitleColor = 11.5, FAINT_INK.light
    chart = chart.properties(title=params, background=PAGE.light)
    chart = chart.configure_legend(labelFontSize=12, orient="top", labelColor=SOFT_INK.light, titleColor=SOFT_INK.light)
    chart = chart.configure_header(labelColor=SOFT_INK.light, titleColor=SOFT_INK.light, labelLimit=LEGEND_PX)
    chart = chart.configure_view(stroke=None, **({"fill": fill} if fill else {}))
    return chart.configure_axis(
        grid=fill is None,
        gridColor=GRID.light,
        domainColor=DOMAIN.light,
        tickColor=DOMAIN.light,
        labelColor=SOFT_INK.light,
        labelFontSize=11,
        titleColor=SOFT_INK.light,
        titleFontSize=12,
        titleFontWeight=500,
    )
