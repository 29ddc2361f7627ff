"""``KVzip``: keep the rows that the model needs to repeat the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.errors import PolicyError
from kvlab.policies.scorers.adakv import shared_among_heads
from kvlab.policies.scorers.base import ScoreContext
from kvlab.policies.scorers.saved_scores import LAYER, TOKENS, SavedScores


@dataclass(frozen=True)
class KVzip(SavedScores):
    """Rows that are attended to most while the model repeats the context stay. The question need not be known.

    Follows Kim et al. 2025: a row's score is the greatest weight that any query of the repetition gives it. Rows of all
    layers and heads are compared, so that layers and heads keep different numbers; the first ``sinks`` rows stay.
    The repetition is a second prefill, about as long as the first:
    ``kvlab.caches.later_attention.repeat_attention`` computes it and tells what it cost. Its scores depend on the
    context alone, so that one file serves each question behind it. Deviation: a layer keeps a whole number of rows for
    each head on average, so that it may miss the threshold of all layers by less than a row a head.

    Args:
        scores: path of a file with the scores of this very prompt.
        sinks: first tokens that always stay.
        even: whether each layer keeps the same number of rows; heads still differ.
    """

    name: ClassVar[str] = "kvzip"
    paper: ClassVar[str] = "KVzip, arXiv:2505.23416"
    sinks: int = 4
    even: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sinks < 0:
            raise PolicyError(f"kvzip: sinks={self.sinks} is negative; write sinks=0 or more")

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        average = super().rows(prompt_tokens, layer, n_layers)
        if self.even or self.scores is None:
            return average
        saved = self.saved()
        tables = {name: table for name, table in saved.items() if name.startswith(LAYER.format(""))}
        length, own = len(saved[TOKENS]), LAYER.format(layer)
        if prompt_tokens != length or own not in tables or average >= length:
            return average
        ranked = np.sort(np.concatenate([table[:, self.sinks :].ravel() for table in tables.values()]))[::-1]
        heads = sum(len(table) for table in tables.values())
        spare = heads * (average - min(self.sinks, length))
        if spare <= 0:
            return average
        stays = (tables[own][:, self.sinks :] >= ranked[spare - 1]).sum()
        return max(1, self.sinks + round(stays / len(tables[own])))

    def targets(self, scores: mx.array, rows: int) -> Sequence[int]:
        return shared_among_heads(scores, rows, 1)

    def score(self, context: ScoreContext) -> mx.array:
        is_sink = (context.positions >= 0) & (context.positions < self.sinks)
        return mx.where(is_sink, mx.inf, super().score(context))
