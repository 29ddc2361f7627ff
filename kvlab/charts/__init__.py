"""Figures: functions from frames to Altair charts. They know rows and events, no decoder and no policy objects.

`rows` is `Results.frame()`; event frames are `Results.events(kind)`, with `policy` and the other tags as columns.
"""

from kvlab.charts.blocks import block_map, tier_bytes
from kvlab.charts.concurrency import gaps_beside_a_long_prompt, live_bytes_by_concurrency, throughput_by_concurrency
from kvlab.charts.fidelity import quality_by_bytes
from kvlab.charts.gaps import token_gaps
from kvlab.charts.quality import quality_by_live_bytes
from kvlab.charts.restart import ttft_after_restart
from kvlab.charts.tiers import bytes_by_tier
from kvlab.charts.ttft import ttft_parts, ttft_waterfall
from kvlab.charts.turns import (
    accuracy_by_policy,
    cached_tokens_by_turn,
    eviction_map,
    kv_bytes_over_time,
    ttft_by_turn,
)

__all__ = [
    "accuracy_by_policy", "block_map", "bytes_by_tier", "cached_tokens_by_turn", "eviction_map",
    "gaps_beside_a_long_prompt", "kv_bytes_over_time", "live_bytes_by_concurrency", "quality_by_bytes",
    "quality_by_live_bytes", "throughput_by_concurrency", "tier_bytes", "token_gaps", "ttft_after_restart",
    "ttft_by_turn", "ttft_parts", "ttft_waterfall",
]  # fmt: skip
