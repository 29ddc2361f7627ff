"""Quality against bytes, with the measure to choose."""

from __future__ import annotations

import ipywidgets
import polars as pl

from kvlab.charts.quality import QUALITY, live_megabytes, quality_by_bytes
from kvlab.errors import RunError
from kvlab.widgets.panel import Drawn, Panel


def quality_against_bytes(rows: pl.DataFrame) -> Panel:
    """Show live KV against a measure of the rows, a point a policy; the slider leaves out larger caches."""
    found = [metric for metric in QUALITY if not rows.filter(pl.col("metric") == metric).is_empty()]
    held = live_megabytes(rows)
    if not found or held.is_empty():
        raise RunError(f"these rows have no {' or '.join(QUALITY)} beside kv_bytes_live")
    sizes = sorted({round(value, 3) for value in held["bytes"]})
    controls = {
        "measure": ipywidgets.Dropdown(options=found, description="measure"),
        "at_most": ipywidgets.SelectionSlider(value=sizes[-1], options=sizes, description="MB at most"),
    }

    def draw(measure: str, at_most: float) -> Drawn:
        small = held.filter(pl.col("bytes").round(3) <= at_most)["policy"]
        shown = rows.filter(pl.col("policy").is_in(small.implode()))
        return Drawn(chart=quality_by_bytes(shown, measure, among=rows["policy"].unique(maintain_order=True).to_list()))

    return Panel(controls, draw)
