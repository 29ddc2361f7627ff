"""``KNorm``: keep the rows whose keys have the smallest norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.policies.scorers.base import ScoreContext, Scorer


@dataclass(frozen=True)
class KNorm(Scorer):
    """Rows whose keys have a small L2 norm stay, because they tend to get the most attention. Needs no queries.

    Follows Devoto et al. 2024. Deviations: every layer is compressed (the paper leaves the first two alone in its
    language-modelling runs), and the norm is taken after RoPE, which leaves it unchanged.
    """

    name: ClassVar[str] = "knorm"
    paper: ClassVar[str] = "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression, arXiv:2406.11430"

    def score(self, context: ScoreContext) -> mx.array:
        return -mx.linalg.norm(context.keys.astype(mx.float32), axis=-1)
