"""``ReplayCounts``: what one tier of one capacity hit of a trace."""

from __future__ import annotations

import math
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
        lost: of a sampled replay, the estimated uses of blocks that had left; ``hit_blocks`` are then zeros. Else None.
    """

    trace: BlockTrace
    replace: str
    capacity: Capacity
    hit_blocks: np.ndarray
    evictions: int
    insertions: int
    sampled: float = 1.0
    lost: float | None = None

    @cached_property
    def hit_tokens(self) -> np.ndarray:
        """Tokens of each request's prompt that are not computed, int64 ``[requests]``."""
        return self.trace.hit_tokens(self.hit_blocks)

    @property
    def hits(self) -> int:
        """Hit blocks of all requests; of a sampled replay an estimate."""
        if self.lost is not None:
            return max(0, round(len(self.trace.blocks) - self.trace.unique - self.lost))
        return int(self.hit_blocks.sum())

    @property
    def cached_tokens(self) -> int:
        """Tokens of all hit blocks; of a sampled replay an estimate, in which those that had left were full."""
        if self.lost is not None:
            return max(0, round(self.trace.known_tokens - self.lost * self.trace.block_tokens))
        return int(self.hit_tokens.sum())

    @property
    def by_block(self) -> float:
        """Hit blocks over the blocks of all requests."""
        return ratio(self.hits, len(self.trace.blocks))

    @property
    def by_token(self) -> float:
        """Tokens of hit blocks over the tokens of all prompts."""
        return ratio(self.cached_tokens, self.trace.input_tokens.sum())

    @property
    def by_request(self) -> float:
        """Mean over the requests with blocks of their own hit ratio by block; NaN of a sampled replay."""
        if self.lost is not None:
            return math.nan
        filled = self.trace.lengths > 0
        return mean(self.hit_blocks[filled] / self.trace.lengths[filled])

    @property
    def by_request_tokens(self) -> float:
        """Mean over the requests with tokens of their own hit ratio by token; NaN of a sampled replay."""
        if self.lost is not None:
            return math.nan
        spoken = self.trace.input_tokens > 0
        return mean(self.hit_tokens[spoken] / self.trace.input_tokens[spoken])
