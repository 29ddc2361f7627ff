"""Widgets over kvlab's charts: live where a kernel runs, a picture everywhere else."""

from kvlab.widgets.agents import agents_side_by_side
from kvlab.widgets.designs import which_design_wins
from kvlab.widgets.evictions import watch_evictions
from kvlab.widgets.panel import Drawn, Panel
from kvlab.widgets.quality import quality_against_bytes
from kvlab.widgets.tiers import tiers_over_time
from kvlab.widgets.timing import ttft_by_part

__all__ = [
    "Drawn", "Panel", "agents_side_by_side", "quality_against_bytes", "tiers_over_time", "ttft_by_part",
    "watch_evictions", "which_design_wins",
]  # fmt: skip
