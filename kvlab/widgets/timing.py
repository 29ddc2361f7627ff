"""A panel on the time to first token, turn by turn."""

from __future__ import annotations

import ipywidgets
import polars as pl

from kvlab.charts.ttft import PARTS, ttft_parts, ttft_waterfall
from kvlab.counts import counted
from kvlab.errors import RunError
from kvlab.results import Results
from kvlab.widgets.panel import Drawn, Panel


def ttft_by_part(results: Results, *, policy: str | None = None) -> Panel:
    """Show a waterfall of every turn under one policy; the slider highlights one turn and names its cached tokens.

    Raises RunError where the results have no events, or no such policy.
    """
    parts = ttft_parts(results.events)
    matched = results.events("matched")
    policies = parts["policy"].unique(maintain_order=True).to_list()
    if policy is not None and policy not in policies:
        raise RunError(f"no policy {policy!r} in these results; there are {', '.join(policies)}")
    turns = parts["turn"].unique().sort().to_list()
    controls = {
        "policy": ipywidgets.Dropdown(value=policy or policies[0], options=policies, description="policy"),
        "turn": ipywidgets.SelectionSlider(value=turns[-1], options=turns, description="turn"),
        "skip_first": ipywidgets.Checkbox(value=False, description="without turn 1", indent=False),
    }

    def draw(policy: str, turn: int, skip_first: bool) -> Drawn:
        own = parts.filter((pl.col("policy") == policy) & ((pl.col("turn") > turns[0]) | (not skip_first)))
        means = dict(own.filter(pl.col("turn") == turn).group_by("part").agg(pl.col("ms").mean()).iter_rows())
        chart = ttft_waterfall(own, turn=turn if means else None, among=policies)
        if not means:
            return Drawn(f"turn {turn} is left out", chart=chart)
        told = ", ".join(f"{part} {means[part]:.1f}" for part in PARTS if means.get(part, 0) >= 0.05)
        note = f"<b>turn {turn}</b>: {sum(means.values()):.1f} ms = {told}"
        found = (
            matched.filter((pl.col("policy") == policy) & (pl.col("turn") == turn))
            if "turn" in matched.columns
            else matched
        )
        for one in found.head(1).iter_rows(named=True):
            tiers = [f"{one[name]} from {name.removesuffix('_tokens')}" for name in one if name.endswith("_tokens")
                     and name != "cached_tokens" and one[name]]  # fmt: skip
            note += f" · {counted(one['cached_tokens'], 'token')} cached" + (f" ({', '.join(tiers)})" if tiers else "")
            note += f", the rest computed because: {one['miss']}" if one["miss"] else ""
        return Drawn(note, chart=chart)

    return Panel(controls, draw)
