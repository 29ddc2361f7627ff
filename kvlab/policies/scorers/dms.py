"""``DMS``: evict rows by a threshold instead of a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.errors import PolicyError
from kvlab.policies.scorers.adakv import AdaKV
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.wrapping import WrappingScorer


@dataclass(frozen=True)
class DMS(WrappingScorer):
    """Rows with another scorer's score of ``threshold`` or more stay, and the latest; heads may keep different numbers.

    Follows the inference of Dynamic Memory Sparsification (Lancucki et al. 2025) with dense prefill, as kvpress does:
    a row is decided on when it is ``recent`` tokens old, so that the model has read it by then. Which threshold is a
    good one depends on the scorer and the model. Deviations: the paper trains a head for the decision, and here another
    scorer gives the score; while decoding, all rows that are held are scored again each ``interval`` tokens (kvpress
    scores a row once). A head keeps at least one row.

    Args:
        scorer: the scorer whose scores are compared with the threshold.
        threshold: least score of rows that stay; none: the policy is refused when it runs.
        recent: latest tokens that always stay.
    """

    name: ClassVar[str] = "dms"
    paper: ClassVar[str] = "Inference-Time Hyper-Scaling with KV Cache Compression, arXiv:2506.05345"
    threshold: float | None = None
    recent: int = 128

    def __post_init__(self) -> None:
        if isinstance(self.scorer, AdaKV | DMS):
            raise PolicyError(
                f"dms: '{self.scorer.name}' decides how many rows a head keeps: write {self.scorer} alone"
            )
        if self.recent < 0:
            raise PolicyError(f"dms: recent={self.recent} is negative; write recent=0 or more")
        super().__post_init__()
        if self.budget != Scorer.budget:
            raise PolicyError(
                f"dms: a threshold decides how many rows stay, not budget={self.budget}: write dms("
                f"{self.scorer.name}):threshold=VALUE"
            )

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        """Return one row less than the prompt has, so that its end is a time to evict; the threshold says how many."""
        return max(1, prompt_tokens - 1)

    def score(self, context: ScoreContext) -> mx.array:
        is_recent = context.positions >= context.offset - self.recent
        return mx.where(is_recent, mx.inf, super().score(context))

    def targets(self, scores: mx.array, rows: int) -> Sequence[int]:
        if self.threshold is None:
            raise PolicyError(
                f"dms has no threshold: write dms({self.scorer}):threshold=VALUE, the least score to stay"
            )
        counts = np.array((scores[0] >= self.threshold).sum(axis=-1))
        return [max(1, int(count)) for count in counts]
