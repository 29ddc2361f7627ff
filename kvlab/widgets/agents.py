"""A panel on concurrent agents: memory and gaps, by their number."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets

from kvlab.charts import kv_bytes_over_time, token_gaps
from kvlab.errors import RunError
from kvlab.results import Results
from kvlab.results.summary import bytes_text
from kvlab.widgets.panel import Drawn, Panel

VIEWS = ("memory", "gaps")


def agents_side_by_side(runs: Mapping[int, Results]) -> Panel:
    """Show live KV over time or the gaps between tokens; ``runs`` are results by the number of concurrent agents."""
    if not runs:
        raise RunError("no runs to show; give results by how many agents there were, such as {4: kvlab.compare(...)}")
    counts = sorted(runs)
    controls = {
        "agents": ipywidgets.SelectionSlider(value=counts[-1], options=counts, description="agents"),
        "view": ipywidgets.ToggleButtons(options=VIEWS, style={"button_width": "90px"}),
    }

    def draw(agents: int, view: str) -> Drawn:
        results = runs[agents]
        events = {kind: results.events(kind) for kind in ("first_token", "token", "finished", "submitted")}
        if view == "gaps":
            return Drawn(chart=token_gaps(events["first_token"], events["token"], among=results.policies))
        where = (events["token"], events["finished"], events["submitted"])
        chart = kv_bytes_over_time(*where, among=results.policies)
        return Drawn(_note(results), chart=chart)

    return Panel(controls, draw)


def _note(results: Results) -> str:
    table = results.summary()
    told = [f"{row['policy']}: {bytes_text(row['kv_bytes_live'])} a sequence" for row in table.iter_rows(named=True)]
    return "Live KV at the last turn, mean: " + " · ".join(told)
