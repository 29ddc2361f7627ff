"""RAM against SSD: the sizes that reach a target, from the rows of ``kvlab replay --plan``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import altair as alt
import polars as pl

from kvlab.charts.colors import BLUE, INK
from kvlab.charts.direct_labels import Anchor, beside_points, name_marks
from kvlab.charts.style import GREY, HEIGHT, WIDTH, require, styled
from kvlab.errors import RunError

MARGIN = 1.18
"""The axes end so much beyond the largest size of the frontier."""
UNITS = {
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1.0, "bytes")),
    "tokens": ((1e6, "M tokens"), (1.0, "tokens")),
}
WAIT = "ttft_p"


def tier_sizes(rows: pl.DataFrame) -> alt.LayerChart:
    """Draw what was tried: full points reach the target, hollow ones miss it; the line joins the smallest that reach.

    The answer has its sizes beside it. Trials far beyond the smallest sizes are left out.
    """
    require(rows, "ram_size", "ssd_size", "size_unit", "reached", "chosen", "ram", "ssd", "metric", "target", "trace")
    smallest = rows.filter(pl.col("chosen") != "")
    if smallest.is_empty():
        raise RunError("no size reaches the target: this chart shows the rows of `kvlab replay --plan --json`")
    tops = [MARGIN * max(map(float, smallest[name].to_list())) for name in ("ram_size", "ssd_size")]
    top_ram, top_ssd = tops[0] or 1.0, tops[1] or tops[0] or 1.0
    shown = rows.filter((pl.col("ram_size") <= top_ram) & (pl.col("ssd_size") <= top_ssd))
    (ram_unit, ram_name), (ssd_unit, ssd_name) = (_unit(top, rows["size_unit"][0]) for top in (top_ram, top_ssd))
    data = shown.with_columns((pl.col("ram_size") / ram_unit).alias("x"), (pl.col("ssd_size") / ssd_unit).alias("y"))
    x = alt.X("x:Q", title=f"RAM ({ram_name})", scale=alt.Scale(domain=[0, top_ram / ram_unit], nice=False))
    y = alt.Y("y:Q", title=f"SSD ({ssd_name})", scale=alt.Scale(domain=[0, top_ssd / ssd_unit], nice=False))
    base = alt.Chart(data.select("x", "y", "ram", "ssd", "value", "reached", "chosen")).encode(x=x, y=y)
    tooltip = ["ram:N", "ssd:N", alt.Tooltip("value:Q", title=rows["metric"][0], format=".4~g"), "reached:N"]
    line = (
        base.transform_filter("datum.chosen != ''")
        .mark_line(interpolate="step-after", strokeDash=[5, 4], strokeWidth=1.6, color=GREY)
        .encode(order="x:Q")
    )
    marks = [
        base.transform_filter("datum.reached" if reached else "!datum.reached")
        .mark_point(filled=reached, size=70, strokeWidth=1.8, opacity=1, color=BLUE.light if reached else GREY)
        .encode(tooltip=tooltip)
        for reached in (False, True)
    ]
    answer = data.filter(pl.col("chosen") == "answer")
    ring = base.transform_filter("datum.chosen == 'answer'").mark_point(size=240, strokeWidth=2, color=INK.light)
    name = f"{answer['ram'][0]} RAM, {'no SSD' if answer['ssd'][0] == '0' else answer['ssd'][0] + ' SSD'}"
    place = Anchor(WIDTH * answer["ram_size"][0] / top_ram, HEIGHT * (1 - answer["ssd_size"][0] / top_ssd), name)
    blocked = list(_steps([(WIDTH * x / top_ram, HEIGHT * (1 - y / top_ssd)) for x, y in _sizes(smallest)]))
    names = name_marks(beside_points([place], WIDTH, HEIGHT, blocked=blocked), alt.Color(value=INK.light))
    share = "" if rows["metric"][0].startswith(WAIT) else " of what tiers without limit hit"
    note = [f"Full points reach {rows['target'][0]}{share}, hollow ones do not. Dashed: the smallest sizes that do."]
    chart = alt.layer(line, *marks, ring, *names).properties(width=WIDTH, height=HEIGHT)
    return styled(chart, f"How large a cache: {rows['trace'][0]}", note)


def _sizes(smallest: pl.DataFrame) -> list[tuple[float, float]]:
    return list(smallest.sort("ram_size").select("ram_size", "ssd_size").iter_rows())


def _steps(points: list[tuple[float, float]]) -> Iterator[tuple[float, float, float, float]]:
    """Yield the boxes of the line's steps, in pixels, which the name keeps off."""
    for (x0, y0), (x1, y1) in pairwise(points):
        yield x0, y0 - 2, x1, y0 + 2
        yield x1 - 2, min(y0, y1), x1 + 2, max(y0, y1)


def _unit(size: float, kind: str) -> tuple[float, str]:
    return next((unit, name) for unit, name in UNITS[kind] if size >= unit or unit == 1.0)
