"""``CriticalKV``: weigh another scorer's attention by what the values add to the layer's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.adakv import AdaKV
from kvlab.policies.scorers.base import ScoreContext
from kvlab.policies.scorers.compactor import Compactor
from kvlab.policies.scorers.keydiff import KeyDiff
from kvlab.policies.scorers.knorm import KNorm
from kvlab.policies.scorers.model_layer import output_weight_of
from kvlab.policies.scorers.triattention import TriAttention
from kvlab.policies.scorers.wrapping import WrappingScorer

BELOW_ZERO = (KNorm, KeyDiff, Compactor, TriAttention)
"""Scorers whose scores may be below 0, so that a large value would count against its row."""
ROWS_AT_ONCE = 512
"""Rows whose outputs are computed together: memory is this times the hidden size, in float32."""


@dataclass(frozen=True)
class CriticalKV(WrappingScorer):
    """Rows that change the output of attention most stay: another scorer's weight, times the size of the value there.

    Follows Feng et al. 2025, in two stages: ``first`` of the budget goes to the rows with the best scores; the others
    are ranked by (score + ``epsilon``) times the L1 norm of the value behind the output projection, averaged over the
    query heads of a group. The scores must be attention weights, or at least not below 0. Deviation: while decoding,
    the stages are taken over the rows that are still held.

    Args:
        scorer: the scorer whose scores are weighed.
        first: share of the budget that the scores alone give out, from 0 to 1; 1 is the scorer alone.
        epsilon: added to each score, so that large values count where scores are 0.
    """

    name: ClassVar[str] = "criticalkv"
    paper: ClassVar[str] = "Identify Critical KV Cache in LLM Inference, arXiv:2502.03805"
    first: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        if isinstance(self.scorer, CriticalKV):
            raise PolicyError(f"criticalkv: '{self.scorer}' weighs values already: write {self.scorer} alone")
        if isinstance(self.scorer, AdaKV):
            inner = self.scorer.scorer
            raise PolicyError(f"criticalkv: heads share a budget by the final scores: write adakv(criticalkv({inner}))")
        if isinstance(self.scorer, BELOW_ZERO):
            raise PolicyError(
                f"criticalkv: the scores of '{self.scorer.name}' may be below 0, so that large values would count "
                "against their rows: write a scorer of attention, such as criticalkv(snapkv)"
            )
        if not 0 <= self.first <= 1:
            raise PolicyError(f"criticalkv: first={self.first} is no share; write 0 to 1, such as first=0.5")
        if self.epsilon < 0:
            raise PolicyError(f"criticalkv: epsilon={self.epsilon} is negative; write epsilon=0 or more")
        super().__post_init__()

    def score(self, context: ScoreContext) -> mx.array:
        scores = super().score(context).astype(mx.float32)
        length = scores.shape[-1]
        # Complete at the end of the prompt; later, no more rows are held than the budget and those that leave.
        budget = min(self.rows(context.offset, context.layer, context.n_layers), length)
        weighed = (scores + self.epsilon) * _output_norms(context, self.name)
        weighed = mx.where(mx.isinf(scores), scores, weighed)
        if not (own := self._first_rows(budget)):
            return weighed
        # The newest of rows with equal scores, as the cache itself chooses.
        order = mx.argsort(mx.argsort(-scores[..., ::-1], axis=-1), axis=-1)[..., ::-1]
        return mx.where(order < own, mx.inf, weighed)

    def _first_rows(self, budget: int) -> int:
        """Return how many rows of a head the scores alone choose: at least 1, unless the share is 0."""
        return max(1, int(budget * self.first)) if self.first else 0


def _output_norms(context: ScoreContext, name: str) -> mx.array:
    """Return the L1 norm of each row's value behind the output projection, ``[1, n_kv_heads, length]``."""
    each = []
    for head, group in enumerate(output_weight_of(context, name)):
        values = context.values[0, head].astype(mx.float32)
        parts = [
            mx.stack([mx.abs(values[start : start + ROWS_AT_ONCE] @ one).sum(axis=-1) for one in group]).mean(axis=0)
            for start in range(0, len(values), ROWS_AT_ONCE)
        ]
        each.append(mx.concatenate(parts))
    return mx.stack(each)[None]
