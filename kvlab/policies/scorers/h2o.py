"""``H2O``: keep the rows that all queries so far have attended to most, and the latest."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer

MODES = ("sum", "mean")
QUERIES_AT_ONCE = 128
"""Queries whose attention weights are computed together: memory is this times heads times length, in float32."""


@dataclass(frozen=True)
class H2O(Scorer):
    """Heavy hitters, the rows with the most attention from all queries so far, stay; so do the latest rows.

    Follows Zhang et al. 2023: the attention weights that a row has got are summed over all queries of the sequence,
    from the first token of the prompt to the newest; half of the budget is kept for the latest rows, and the other half
    goes to the rows with the largest sums. ``mode=mean`` divides a sum by the number of queries that saw the row, as
    kvpress' observed attention does, because the sum favours the first tokens, which all queries see. Deviations: under
    grouped-query attention the sum runs over the query heads of a group; while decoding, ``interval`` rows leave
    together. The weights of all queries are computed a second time beside the fused attention, and a prompt is always
    computed from its first token: stored KV has no queries.

    Args:
        mode: ``sum`` (the paper's) or ``mean``.
        recent: share of the budget that the latest rows take, from 0 to 1.
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "H2O: Heavy-Hitter Oracle, arXiv:2306.14048"
    mode: str = "sum"
    recent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise PolicyError(f"h2o: mode={self.mode} is unknown; write sum or mean")
        if not 0 <= self.recent <= 1:
            raise PolicyError(f"h2o: recent={self.recent} is no share; write 0 to 1, such as recent=0.5")

    @property
    def accumulates(self) -> bool:
        return True

    def accumulate(self, accumulated: mx.array, context: ScoreContext) -> mx.array:
        queries = context.queries
        if queries is None:
            return accumulated
        _, kv_heads, length, _ = context.keys.shape
        count = queries.shape[2]
        for start in range(0, count, QUERIES_AT_ONCE):
            end = min(start + QUERIES_AT_ONCE, count)
            some = dataclasses.replace(
                context, queries=queries[:, :, start:end], offset=context.offset - count + end, accumulated=None
            )
            accumulated = accumulated + some.attention.reshape(1, kv_heads, -1, length).sum(axis=2)
        return accumulated

    def score(self, context: ScoreContext) -> mx.array:
        if context.accumulated is None:
            raise PolicyError("h2o: no attention was accumulated: the cache must call accumulate for every chunk")
        scores, length = context.accumulated, context.positions.shape[-1]
        if self.mode == "mean":
            scores = scores / mx.maximum(context.offset - context.positions, 1)
        # Complete at the end of the prompt; later, no more rows are held than the budget and those that leave.
        budget = min(self.rows(context.offset, context.layer, context.n_layers), length)
        latest = mx.arange(length) >= length - round(self.recent * budget)
        return mx.where(latest, mx.inf, scores)
