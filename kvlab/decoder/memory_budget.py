"""A byte budget for live KV: who may start, who is refused, and when somebody must step aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from kvlab.caches import LayerCache
from kvlab.caches.serialize import is_cuttable, leaves
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Rotating

GROWTH = 80
"""Rows that kvlab's storage of a sequence may run ahead of its tokens: it grows by steps, and in slabs."""


@dataclass(frozen=True)
class SequenceCost:
    """Live bytes of one sequence: ``per_token`` of rows, and ``fixed`` for state that does not grow.

    ``growth`` is how many rows its storage may run ahead of its tokens.
    """

    per_token: int
    fixed: int
    growth: int = GROWTH

    def of(self, tokens: int) -> int:
        return self.fixed + tokens * self.per_token


def measure(loaded: LoadedModel, caches: Sequence[Any]) -> SequenceCost:
    """What a sequence costs in these empty caches, found by computing two tokens."""
    loaded.model(mx.array([[0, 1]]), cache=list(caches))
    mx.eval([cache.state for cache in caches])
    rows = fixed = 0
    growth = GROWTH
    for _, cache in leaves(caches):
        if isinstance(cache, LayerCache):
            rows += sum(array.nbytes for array in cache.rows.used().values()) // 2
        elif is_cuttable(cache):
            rows += sum(array.nbytes for array in cache.keys_and_values()) // 2
            growth = max(growth, cache.step)
        else:
            fixed += cache.nbytes
    return SequenceCost(rows, fixed, growth)


class LiveMemoryBudget:
    """Admission by memory.

    With ``pauses``, sequences are admitted as long as what they need now fits, and the last to come steps aside when
    growth threatens the budget. Without, the whole length of every sequence is set aside from the start.
    """

    def __init__(self, budget: int, cost: SequenceCost, retention: Module, *, pauses: bool) -> None:
        self.budget = budget
        self.cost = cost
        self.pauses = pauses
        self._retention = retention

    def whole(self, prompt: int, answer: int) -> int:
        """Bytes of a sequence at its longest."""
        tokens = prompt + answer
        if isinstance(self._retention, Rotating):
            tokens = min(tokens, self._retention.sinks + 2 * self._retention.window)
        return self.cost.of(tokens + self.cost.growth)

    def check(self, prompt: int, answer: int) -> None:
        """Raise KvlabError for a request that can never fit."""
        if (need := self.whole(prompt, answer)) > self.budget:
            raise KvlabError(
                f"{prompt} prompt and {answer} answer tokens need {need} bytes of live KV, and the budget is "
                f"{self.budget}: shorten them, or allow more live memory"
            )

    def has_room(self, live: int, promised: int, active: int, tokens: int, whole: int) -> bool:
        """True when one more sequence may start.

        Args:
            live: bytes of live KV now. promised: bytes that the ``active`` sequences have been promised in all.
            tokens: tokens that the new one computes or restores itself. whole: its bytes at its longest.
        """
        if not self.pauses:
            return promised + whole <= self.budget
        return live + self.cost.of(tokens + self.cost.growth) + self.slack(active) <= self.budget

    def is_tight(self, live: int, active: int) -> bool:
        """True when the next steps of ``active`` sequences might exceed the budget."""
        return self.pauses and live + self.slack(active) > self.budget

    def slack(self, active: int) -> int:
        """Bytes that the storage of ``active`` sequences may jump by."""
        return active * self.cost.growth * self.cost.per_token
