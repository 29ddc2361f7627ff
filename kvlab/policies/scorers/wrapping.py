"""``WrappingScorer``: base of scorers that use the scores of another one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.snapkv import SnapKV


@dataclass(frozen=True)
class WrappingScorer(Scorer):
    """Scores as the scorer in its parentheses does; a subclass changes scores or targets.

    ``adakv(snapkv:budget=0.3)`` means ``adakv(snapkv):budget=0.3``: budget and interval are those of the wrapper, and
    may be written in either place.

    Args:
        scorer: the scorer whose scores are used.

    Raises:
        PolicyError: budgets or intervals in both places that differ.
    """

    scorer: Scorer = SnapKV()

    def __post_init__(self) -> None:
        if self.scorer.stored_block is not None:
            raise PolicyError(
                f"{self.name}: '{self.scorer}' compresses blocks, each by itself, which nothing can wrap: write "
                f"{self.scorer} alone"
            )
        for name in ("budget", "interval"):
            self._take_over(name)
        super().__post_init__()
        self._inner.rows(1, 0, 1)  # the wrapped scorer checks the budget that it is given

    def _take_over(self, name: str) -> None:
        """Make the wrapped scorer's budget or interval the wrapper's, so that equal policies have one spelling."""
        default = getattr(Scorer, name)
        outer, inner = getattr(self, name), getattr(self.scorer, name)
        if inner == default:
            return
        if outer not in (default, inner):
            raise PolicyError(
                f"{self.name}: {name}={outer} and {name}={inner} of '{self.scorer.name}' differ: write one"
            )
        object.__setattr__(self, name, inner)
        object.__setattr__(self, "scorer", dataclasses.replace(self.scorer, **{name: default}))

    @cached_property
    def _inner(self) -> Scorer:
        return dataclasses.replace(self.scorer, budget=self.budget, interval=self.interval)

    @property
    def reads_token_ids(self) -> bool:  # type: ignore[override]
        return self.scorer.reads_token_ids

    @property
    def window(self) -> int:
        return self.scorer.window

    @property
    def reads_all_queries(self) -> bool:  # type: ignore[override]
        return self.scorer.reads_all_queries

    @property
    def latest_rows(self) -> int:
        return self.scorer.latest_rows

    @property
    def accumulates(self) -> bool:
        return self.scorer.accumulates

    def rows(self, prompt_tokens: int, layer: int, n_layers: int) -> int:
        return self._inner.rows(prompt_tokens, layer, n_layers)

    def accumulate(self, accumulated: mx.array, context: ScoreContext) -> mx.array:
        return self._inner.accumulate(accumulated, context)

    def score(self, context: ScoreContext) -> mx.array:
        return self._inner.score(context)
