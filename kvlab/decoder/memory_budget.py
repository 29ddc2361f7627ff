"""``LiveMemoryBudget``: a byte budget for live KV: which requests may start, wait, are refused or preempted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from kvlab.caches import LayerCache
from kvlab.caches.serialize import cache_leaves, is_cuttable
from kvlab.counts import counted
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.policies import Module, Rotating

SPARE_ROWS = 80
"""Most unused rows in a sequence's storage: KV buffers grow by 64 rows at a time, and length buckets allocate ahead."""


@dataclass(frozen=True)
class SequenceCost:
    """Live bytes of one sequence: ``per_token`` for rows, and ``fixed`` for state that does not grow.

    ``spare_rows`` is the number of unused rows that its storage may hold.
    """

    per_token: int
    fixed: int
    spare_rows: int = SPARE_ROWS

    def of(self, tokens: int) -> int:
        """Return the bytes of a sequence of ``tokens``."""
        return self.fixed + tokens * self.per_token


def measure(loaded: LoadedModel, caches: Sequence[Any]) -> SequenceCost:
    """Measure the cost of a sequence in these empty caches, by computing two tokens."""
    loaded.model(mx.array([[0, 1]]), cache=list(caches))
    mx.eval([cache.state for cache in caches])
    rows = fixed = 0
    spare_rows = SPARE_ROWS
    for _, cache in cache_leaves(caches):
        if isinstance(cache, LayerCache):
            rows += sum(array.nbytes for array in cache.rows.used().values()) // 2
        elif is_cuttable(cache):
            rows += sum(array.nbytes for array in cache.keys_and_values()) // 2
            spare_rows = max(spare_rows, cache.step)
        else:
            fixed += cache.nbytes
    return SequenceCost(rows, fixed, spare_rows)


class LiveMemoryBudget:
    """Decides by memory which sequences may start.

    With ``preempts``, a sequence starts when its present tokens fit, and running ones are preempted before growth
    exceeds the budget. Without, memory is reserved for the whole length of every sequence from the start.

    Args:
        budget: bytes of live KV.
    """

    def __init__(self, budget: int, cost: SequenceCost, retention: Module, *, preempts: bool) -> None:
        self.budget = budget
        self.cost = cost
        self.preempts = preempts
        self._retention = retention

    def whole(self, prompt: int, answer: int) -> int:
        """Return the bytes of a sequence at its full length: ``prompt`` and ``answer`` tokens."""
        tokens = prompt + answer
        if isinstance(self._retention, Rotating):
            tokens = min(tokens, self._retention.sinks + 2 * self._retention.window)
        return self.cost.of(tokens + self.cost.spare_rows)

    def check(self, prompt: int, answer: int) -> None:
        """Raise KvlabError for a request that can never fit."""
        if (need := self.whole(prompt, answer)) > self.budget:
            raise KvlabError(
                f"{prompt} prompt and {counted(answer, 'answer token')} need {need} bytes of live KV, and the budget "
                f"is {self.budget}: shorten them, or allow more live memory"
            )

    def has_room(self, live: int, reserved: int, active: int, tokens: int, whole: int) -> bool:
        """Return whether one more sequence may start.

        Args:
            live: bytes of live KV now.
            reserved: bytes of the ``active`` sequences at their full length.
            active: number of running sequences.
            tokens: tokens that the new sequence computes or restores itself.
            whole: bytes of the new sequence at its full length.
        """
        if not self.preempts:
            return reserved + whole <= self.budget
        return live + self.cost.of(tokens + self.cost.spare_rows) + self.slack(active) <= self.budget

    def is_tight(self, live: int, active: int) -> bool:
        """Return whether the next steps of ``active`` sequences might exceed the budget."""
        return self.preempts and live + self.slack(active) > self.budget

    def slack(self, active: int) -> int:
        """Return the bytes by which the storage of ``active`` sequences may grow in one step."""
        return active * self.cost.spare_rows * self.cost.per_token
