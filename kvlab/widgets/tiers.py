"""Blocks on their way between RAM, SSD and gone, request by request."""

from __future__ import annotations

import ipywidgets
import polars as pl

from kvlab.charts import block_map, bytes_at_rest
from kvlab.counts import counted
from kvlab.inspection import BlockResidency
from kvlab.widgets.panel import Drawn, Panel

VIEWS = ("blocks", "bytes")


def tiers_over_time(found: BlockResidency) -> Panel:
    """Show a slider over the requests, with the tier of every block after each, or the bytes of each tier."""
    last = found.steps.height
    controls = {
        "view": ipywidgets.ToggleButtons(options=VIEWS, style={"button_width": "80px"}),
        "request": ipywidgets.IntSlider(value=last, min=1, max=last, description="request"),
    }
    play = ipywidgets.Play(min=1, max=last, interval=700)
    ipywidgets.jslink((play, "value"), (controls["request"], "value"))

    def draw(view: str, request: int) -> Drawn:
        one = found.steps.filter(pl.col("step") == request).to_dicts()[0]
        note = (
            f"<b>request {request}</b>: {one['conversation']}, turn {one['turn']}: {one['cached_tokens']} of "
            f"{counted(one['prompt_tokens'], 'prompt token')} cached, first token after {one['ttft_ms']:.0f} ms"
        )
        note += f"; the rest computed because: {one['miss']}" if one["miss"] else ""
        chart = block_map(found.blocks, step=request) if view == "blocks" else bytes_at_rest(found.steps, step=request)
        return Drawn(note, chart=chart)

    return Panel(controls, draw, play)
