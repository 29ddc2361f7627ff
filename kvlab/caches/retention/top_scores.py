"""``TopScores``: the rows that a scorer ranks highest stay."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.retention.base import Eviction, LayerPlace, Mask, Retention
from kvlab.errors import ModelError, PolicyError, PolicyWarning
from kvlab.policies import Module, ScoreContext, Scorer
from kvlab.policies.scorers.model_layer import LayerContext

NAN_CHECK_DELAY_TOKENS = 3
"""Tokens after which scores are checked for NaN: they have been computed by then, so that the check does not wait."""

ALL_QUERIES = 1 << 30
"""Window of a scorer that reads all queries of the prompt: more than any prompt has."""

MAX_TRIAL_TOKENS = 4
"""Most tokens of a trial of a policy, which nobody needs to be warned of."""


class TopScores(Retention):
    """Keeps the rows that a scorer ranks highest: at the end of the prompt, and while decoding within a fixed budget.

    Heads may keep different numbers of rows. For scorers and positions, those with fewer are filled in front.
    """

    module: ClassVar[type[Module]] = Scorer

    def __init__(self, module: Scorer, place: LayerPlace) -> None:
        super().__init__(module, place)
        self._scorer = module
        self._kept: mx.array | None = None
        self._is_ragged = False
        self._queries: deque[mx.array] = deque()
        self._window = ALL_QUERIES if module.reads_all_queries else module.window
        self._accumulated: mx.array | None = None
        self._limit: int | None = None
        self._budget = self._interval = 0
        self._nan_checks: deque[tuple[int, mx.array]] = deque()

    def mask(self, length: int, offset: int, count: int) -> Mask:
        return None if count == 1 else "causal"

    def positions(self, length: int, offset: int) -> mx.array:
        if self._kept is None:
            return mx.arange(length)[None, None]
        recent = length - self._kept.shape[2]
        if not recent:
            return self._kept
        tail = mx.broadcast_to(mx.arange(offset - recent, offset), (1, self._kept.shape[1], recent))
        return mx.concatenate([self._kept, tail.astype(mx.int32)], axis=2)

    @property
    def is_batchable(self) -> bool:
        return not self.keeps_by_head and not self._scorer.accumulates

    @property
    def keeps_by_head(self) -> bool:
        return type(self._scorer).targets is not Scorer.targets

    def note(self, rows: KVBuffer | None, queries: mx.array, offset: int, scale: float) -> None:
        self._check_scores(offset)
        if window := self._window:
            # Concatenated only when scores are computed, because each concatenation is a kernel.
            self._queries.append(queries[:, :, -window:])
            while sum(some.shape[2] for some in self._queries) - self._queries[0].shape[2] >= window:
                self._queries.popleft()
        if self._scorer.accumulates and rows is not None:
            self._accumulate(rows, queries, offset, scale)

    def is_due(self, length: int, offset: int, count: int) -> bool:
        if self._limit is not None:
            return length > self._limit
        prompt = self.place.prompt_tokens
        return offset >= prompt if prompt is not None else count == 1

    def evict(self, rows: KVBuffer, offset: int, scale: float) -> None:
        if self._limit is None:
            self._limit = self._budget = self._prompt_budget(self.place.prompt_tokens or offset)
            # Rows are evicted in groups, so that a group costs one copy.
            self._interval = min(self._scorer.interval, math.ceil(self._budget / 8))
            if self.place.keeps_prompt:
                self.prompt_rows = rows.snapshot()
            if rows.length > self._budget:
                self._limit = self._keep_best(rows, self._budget, offset, scale)
            if self._scorer.reads_all_queries:
                self._window = self._scorer.window
                if self._last_queries() is None:
                    self._queries.clear()
        else:
            target = max(1, self._budget - self._interval + 1)
            self._limit = self._keep_best(rows, target, offset, scale) + self._interval - 1
        rows.expect(self._limit + 1 - rows.length)

    def _prompt_budget(self, prompt: int) -> int:
        """Return how many rows a head keeps. Raises PolicyError below 1; warns where a scorer's window fills them."""
        budget = self._scorer.rows(prompt, self.place.layer, self.place.n_layers)
        if budget < 1:
            raise PolicyError(f"{self._scorer} keeps {budget} rows of layer {self.place.layer}: it must be 1 or more")
        if budget <= self._scorer.latest_rows and max(budget, MAX_TRIAL_TOKENS) < prompt:
            # The same words for every prompt and layer, so that Python shows them once.
            warnings.warn(_window_fills_budget(self._scorer), PolicyWarning, stacklevel=2)
        return budget

    def _context(self, rows: KVBuffer, queries: mx.array | None, offset: int, scale: float) -> ScoreContext:
        keys, values = rows.decode()
        heads, length = keys.shape[1], keys.shape[2]
        positions = mx.broadcast_to(self.positions(length, offset), (1, heads, length)).astype(mx.int32)
        return self._context_of(keys, values, positions, queries, offset, scale)

    def _context_of(
        self,
        keys: mx.array,
        values: mx.array,
        positions: mx.array,
        queries: mx.array | None,
        offset: int,
        scale: float,
    ) -> ScoreContext:
        ids = self._token_ids(positions, offset) if self._scorer.reads_token_ids else None
        return LayerContext(
            keys, values, positions, queries, scale, self.place.layer, self.place.n_layers, offset,
            token_ids=ids, accumulated=self._accumulated, model_layer=self.place.model_layer,
        )  # fmt: skip

    def _token_ids(self, positions: mx.array, offset: int) -> mx.array:
        if self.place.token_ids is None:
            raise PolicyError(f"{self._scorer} reads token ids, which only kvlab's decoder hands to a cache: use that")
        known = np.asarray(self.place.token_ids()[:offset], np.int32)
        ids = mx.array(np.concatenate([known, np.full(offset - len(known), -1, np.int32)]))
        return mx.where(positions >= 0, ids[mx.maximum(positions, 0)], -1)

    def _accumulate(self, rows: KVBuffer, queries: mx.array, offset: int, scale: float) -> None:
        context = self._context(rows, queries, offset, scale)
        new = context.keys.shape[2] - (0 if self._accumulated is None else self._accumulated.shape[2])
        heads = context.keys.shape[1]
        before = mx.zeros((1, heads, 0)) if self._accumulated is None else self._accumulated
        padded = mx.concatenate([before, mx.zeros((1, heads, new))], axis=2)
        self._accumulated = self._scorer.accumulate(padded, context)
        _check_shape(self._scorer, "accumulate", self._accumulated, padded.shape)

    def _keep_best(self, rows: KVBuffer, target: int, offset: int, scale: float) -> int:
        """Keep ``target`` rows a head, on average; return the number of rows of the head that keeps most."""
        context = self._context(rows, self._last_queries(), offset, scale)
        heads, length = context.keys.shape[1], context.keys.shape[2]
        scores = self._scores(context)
        if self._is_ragged:
            scores = mx.where(context.positions >= 0, scores, -mx.inf)
        asked = self._targets(scores, target, heads, length)
        targets = [min(one, held) for one, held in zip(asked, rows.head_lengths, strict=True)]
        # Sorted from the newest row back, so that of rows with equal scores the newest stay.
        order = length - 1 - mx.argsort(-level(scores)[..., ::-1], axis=-1).astype(mx.int32)
        width = max(targets)
        self._is_ragged = self._is_ragged or min(targets) < width
        if self._is_ragged:
            stays = mx.arange(length) < mx.array(targets)[None, :, None]
            stay = mx.sort(mx.where(stays, order, -1), axis=-1)[..., -width:]
            gone = mx.sort(mx.where(stays, -1, order), axis=-1)[..., min(targets) - length :]
            self._kept, left = _taken(context.positions, stay), _taken(context.positions, gone)
        else:
            stay, gone = mx.sort(order[..., :width], axis=-1), mx.sort(order[..., width:], axis=-1)
            self._kept, left = (mx.take_along_axis(context.positions, index, axis=2) for index in (stay, gone))
        if self.place.record:
            self.evictions.append(Eviction(left, width, offset))
        if self._accumulated is not None:
            self._accumulated = mx.take_along_axis(self._accumulated, mx.maximum(stay, 0), axis=2)
        rows.keep_each(stay, targets)
        return width

    def _scores(self, context: ScoreContext) -> mx.array:
        """Return the scorer's scores ``[1, n_kv_heads, length]``, whose numbers are checked some tokens later."""
        scores = self._scorer.score(context)
        _check_shape(self._scorer, "score", scores, context.keys.shape[:3])
        self._nan_checks.append((context.offset + NAN_CHECK_DELAY_TOKENS, mx.any(mx.isnan(scores))))
        return scores

    def _targets(self, scores: mx.array, target: int, heads: int, length: int) -> list[int]:
        targets = self._scorer.targets(scores, target)
        each = [targets] * heads if isinstance(targets, int) else [int(one) for one in targets]
        if len(each) != heads or min(each) < 1 or max(each) > length:
            raise PolicyError(
                f"{type(self._scorer).__name__}.targets returned {targets}: it must be {heads} numbers, one a KV head, "
                f"from 1 to {length}"
            )
        return each

    def _last_queries(self) -> mx.array | None:
        if not self._queries or not self._window:
            return None
        seen = self._queries[0] if len(self._queries) == 1 else mx.concatenate(list(self._queries), axis=2)
        self._queries = deque([seen[:, :, -self._window :]])
        return self._queries[0]

    def _check_scores(self, offset: int) -> None:
        """Raise PolicyError where scores of some tokens ago are NaN, which have no order."""
        while self._nan_checks and self._nan_checks[0][0] <= offset:
            self._raise_for(self._nan_checks.popleft()[1])

    def check_all_scores(self) -> None:
        while self._nan_checks:
            self._raise_for(self._nan_checks.popleft()[1])

    def _raise_for(self, has_nan: mx.array) -> None:
        if has_nan.item():
            raise PolicyError(
                f"{type(self._scorer).__name__}.score gave NaN in layer {self.place.layer}: scores must be numbers, "
                "and -mx.inf makes a row leave first"
            )

    @property
    def is_compressed(self) -> bool:
        return self._limit is not None

    @property
    def state(self) -> list[mx.array]:
        return [*super().state, *self._held(), *(check[1] for check in self._nan_checks)]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self._held())

    def _held(self) -> list[mx.array]:
        return [*self._queries, *(array for array in (self._kept, self._accumulated) if array is not None)]


def _window_fills_budget(scorer: Scorer) -> str:
    window = scorer.latest_rows
    is_share = type(scorer).rows is Scorer.rows and isinstance(scorer.budget, float) and scorer.budget <= 1
    few = f"of a prompt below {math.ceil((window + 0.5) / scorer.budget):,} tokens" if is_share else "of a short prompt"
    return (
        f"{scorer} keeps no more rows {few} than its window of {window} fills, so that only the latest tokens stay; "
        f"write a larger budget, such as budget={2 * window}, or a smaller window"
    )


def _taken(positions: mx.array, index: mx.array) -> mx.array:
    return mx.where(index >= 0, mx.take_along_axis(positions, mx.maximum(index, 0), axis=2), -1)


def _check_shape(scorer: Scorer, method: str, got: mx.array, wanted: Sequence[int]) -> None:
    if tuple(got.shape) != tuple(wanted):
        raise ModelError(
            f"{type(scorer).__name__}.{method} returned shape {tuple(got.shape)}: it must be {tuple(wanted)}"
        )


def level(scores: mx.array) -> mx.array:
    """Round scores to 16 bits of precision, in float32, so that scores that should be equal are equal.

    The keys of a repeated token, for example, have the same norm, except for rounding that depends on the batch.
    """
    bits = scores.astype(mx.float32).view(mx.int32)
    return ((bits + 128) & ~255).view(mx.float32)
