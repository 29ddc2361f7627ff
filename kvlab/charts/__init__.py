"""Figures: functions from frames to Altair charts. They know rows and events, no decoder and no policy objects.

`rows` is `Results.frame()`; event frames are `Results.events(kind)`, with `policy` and the other tags as columns. A
frame without the drawn columns raises RunError, which names them.

A policy has one label, colour, dash and shape in all charts of a set. They depend on the whole set: where a frame holds
a part of its policies, give all of them as ``among`` (`Results.policies`). Rows of repeats are drawn as their median,
with the range.
"""

from kvlab.charts.codecs import kl_by_stored_bytes
from kvlab.charts.colors import on_dark
from kvlab.charts.concurrency import live_bytes_by_concurrency, throughput_by_concurrency
from kvlab.charts.eviction_strips import eviction_strips
from kvlab.charts.evictions import eviction_map
from kvlab.charts.gaps import gaps_beside_a_long_prompt, token_gaps
from kvlab.charts.hit_ratios import hit_ratio_by_capacity
from kvlab.charts.kept import accuracy_by_kept_kv
from kvlab.charts.live import kv_bytes_over_time
from kvlab.charts.method_measures import measures_by_method
from kvlab.charts.method_ranking import accuracy_by_method
from kvlab.charts.pareto import quality_with_pareto
from kvlab.charts.quality import accuracy_by_policy, quality_by_bytes, quality_by_live_bytes
from kvlab.charts.ranking import waits_by_design
from kvlab.charts.recompute_causes import recompute_causes
from kvlab.charts.restart import ttft_after_restart
from kvlab.charts.tier_sizes import tier_sizes
from kvlab.charts.tiers import block_map, bytes_at_rest, bytes_by_tier
from kvlab.charts.tools import kl_by_position, tools_by_policy
from kvlab.charts.ttft import ttft_parts, ttft_waterfall
from kvlab.charts.turns import cached_tokens_by_turn, ttft_by_turn

__all__ = [
    "accuracy_by_kept_kv",
    "accuracy_by_method",
    "accuracy_by_policy", "block_map", "bytes_at_rest", "bytes_by_tier", "cached_tokens_by_turn", "eviction_map",
    "eviction_strips", "gaps_beside_a_long_prompt", "hit_ratio_by_capacity", "kl_by_position", "kl_by_stored_bytes",
    "kv_bytes_over_time", "live_bytes_by_concurrency", "measures_by_method", "on_dark", "quality_by_bytes",
    "quality_by_live_bytes", "quality_with_pareto",
    "recompute_causes", "throughput_by_concurrency", "tier_sizes", "token_gaps", "tools_by_policy",
    "ttft_after_restart", "ttft_by_turn", "ttft_parts", "ttft_waterfall",
    "waits_by_design",
]  # fmt: skip
