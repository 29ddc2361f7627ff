"""Replay: traces of requests through the live store's replacement policies and tier code, without a model.

A trace says which blocks each request's prompt consists of. :func:`replay` says what a tier of some capacity would hit
of it under a replacement policy; :func:`load_trace` reads traces of several formats.
"""

from kvlab.replay.capacity import Capacity, read_capacity
from kvlab.replay.causes import RecomputeCauses, recompute_causes
from kvlab.replay.counts import ReplayCounts
from kvlab.replay.errors import TraceError
from kvlab.replay.loaders import TraceLoader, TraceSource, load_trace
from kvlab.replay.lru import lru_counts
from kvlab.replay.plan_results import PlanResults
from kvlab.replay.planning import plan
from kvlab.replay.replaying import replay
from kvlab.replay.results import ReplayResults
from kvlab.replay.sampling import simulate_sampled
from kvlab.replay.simulation import simulate
from kvlab.replay.stack_distances import StackDistances, stack_distances
from kvlab.replay.statistics import TraceStatistics, statistics
from kvlab.replay.tiered_counts import TieredCounts
from kvlab.replay.tiered_replaying import replay_tiers
from kvlab.replay.tiered_results import TieredResults
from kvlab.replay.tiered_simulation import RestoreRule, simulate_tiers
from kvlab.replay.trace import BlockTrace, block_trace

__all__ = [
    "BlockTrace", "Capacity", "PlanResults", "RecomputeCauses", "ReplayCounts", "ReplayResults", "RestoreRule",
    "StackDistances", "TieredCounts", "TieredResults", "TraceError", "TraceLoader", "TraceSource", "TraceStatistics",
    "block_trace", "load_trace", "lru_counts", "plan", "read_capacity", "recompute_causes", "replay", "replay_tiers",
    "simulate", "simulate_sampled", "simulate_tiers", "stack_distances", "statistics",
]  # fmt: skip
