"""``ReplayCounts``: what one tier of one capacity hit of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvlab.replay.capacity import Capacity
from kvlab.replay.statistics import mean, ratio
from kvlab.replay.trace import BlockTrace


@dataclass(frozen=True, eq=False)
class ReplayCounts:
    """Holds the hits of each request, and how many blocks entered and left.

    Attributes:
        trace: what was replayed.
        replace: name of the replacement policy.
        capacity: of the tier.
        hit_blocks: blocks of each request's prefix that were resident, int64 ``[requests]``.
        evictions: blocks that left for others; of sampled replays, scaled.
        insertions: blocks that entered.
        sampled: share of the blocks that was looked at; 1 for all.
        estimate: the hit ratio by block of a sampled replay, which ``hit_blocks`` does not have; else None.
    """

    trace: BlockTrace
    replace: str
    capacity: Capacity
    hit_blocks: np.ndarray
    evictions: int
    insertions: int
    sampled: float = 1.0
    estimate: float | None = None

    @cached_property
    def hit_tokens(self) -> np.ndarray:
        """Tokens of each request's prompt that are not computed, int64 ``[requests]``."""
        return self.trace.hit_tokens(self.hit_blocks)

    @property
    def hits(self) -> int:
        """Hit blocks of all requests."""
        return int(self.hit_blocks.sum())

    @property
    def by_block(self) -> float:
        """Hit blocks over the blocks of all requests."""
        return self.estimate if self.estimate is not None else ratio(self.hits, len(self.trace.blocks))

    @property
    def by_token(self) -> float:
        """Tokens of hit blocks over the tokens of all prompts."""
        return ratio(self.hit_tokens.sum(), self.trace.input_tokens.sum())

    @property
    def by_request(self) -> float:
        """Mean over the requests with blocks of their own hit ratio by block."""
        filled = self.trace.lengths > 0
        return mean(self.hit_blocks[filled] / self.trace.lengths[filled])

    @property
    def by_request_tokens(self) -> float:
        """Mean over the requests with tokens of their own hit ratio by token."""
        spoken = self.trace.input_tokens > 0
        return mean(self.hit_tokens[spoken] / self.trace.input_tokens[spoken])
