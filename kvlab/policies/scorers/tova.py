"""``TOVA``: keep the rows that the last query attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.policies.scorers.base import ScoreContext, Scorer

ABOVE_ANY_WEIGHT = 2.0
"""Score of the newest row: attention weights are at most 1."""


@dataclass(frozen=True)
class TOVA(Scorer):
    """Rows to which the last query pays the most attention stay, the same rows in all KV heads of a layer.

    Follows Oren et al. 2024: the score is the attention weight of the last query, averaged over all heads of the layer.
    Deviations: the newest row always stays (the paper lets it compete); while decoding, ``interval`` rows leave
    together, chosen by the query of that step (``interval=1`` is the paper's).
    """

    name: ClassVar[str] = "tova"
    paper: ClassVar[str] = "Transformers are Multi-State RNNs, arXiv:2401.06104"

    @property
    def window(self) -> int:
        return 1

    def score(self, context: ScoreContext) -> mx.array:
        _, kv_heads, length, _ = context.keys.shape
        weights = context.attention[:, :, -1].mean(axis=1, keepdims=True)
        weights = mx.where(mx.arange(length) == length - 1, ABOVE_ANY_WEIGHT, weights)
        return mx.broadcast_to(weights, (1, kv_heads, length))
