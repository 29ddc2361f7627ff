"""Measure the attention that later tokens pay to a context: what ``oracle`` and ``kvzip`` score rows by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.observed_layers import observed_caches
from kvlab.errors import ModelError

PREFILL_STEP = 512
QUERIES_AT_ONCE = 128
"""Later queries whose weights are computed together: memory is this times query heads times rows, in float32."""
REPEAT = "\n\nRepeat the previous context exactly."
REPEAT_FROM = "\n\nRepeat the part of the previous context exactly, starting with"
"""KVzip's prompts: for a context of one part, and for each further part, which its first tokens follow."""
STARTING_TOKENS = 8
"""Tokens of the part before that name the beginning of the next one."""


@dataclass(frozen=True)
class ContextScores:
    """Scores of a context's rows.

    Attributes:
        tokens: token ids of the context.
        layers: for each layer ``[n_kv_heads, tokens]``, float32; None for layers without a plain KV cache.
        computed_tokens: tokens that were computed beside the context: what the scores cost.
        seconds: time of that.
    """

    tokens: tuple[int, ...]
    layers: tuple[np.ndarray | None, ...]
    computed_tokens: int
    seconds: float


def continuation_attention(model: nn.Module, context: Sequence[int], continuation: Sequence[int]) -> ContextScores:
    """Return the attention that ``continuation`` pays to each row of ``context``, with all rows there.

    Weights are summed over the tokens of the continuation, and averaged over the query heads of a group. Raises
    ModelError where either is empty.
    """
    tally = _Tally(len(context), lambda before, weights: before + weights.mean(axis=1).sum(axis=-2))
    caches = _prefilled(model, context, tally)
    started = time.perf_counter()
    tally.start(caches, None)
    _compute(model, caches, continuation)
    return tally.result(context, len(continuation), started)


def repeat_attention(
    model: nn.Module, tokenizer: Any, context: Sequence[int], *, first: int = 0, part: int = 2048, sinks: int = 4,
    answer: Sequence[int] = (),
) -> ContextScores:  # fmt: skip
    """Return the most attention that each row of ``context`` gets while the model is made to repeat it.

    Follows KVzip: the context is followed by a request to repeat it, and by itself; the score of a row is its greatest
    weight from any query and query head of its group, among the first ``sinks`` rows, the part that is repeated and the
    request. Parts of ``part`` tokens are repeated one by one.

    Args:
        first: tokens at the beginning that are not repeated, such as a template's; their rows score 0.
        answer: tokens between the request and the repeated part, such as the beginning of an assistant's message.

    Raises:
        ModelError: rows of this model cannot be removed again, as a sliding window's cannot.
    """
    tally = _Tally(len(context), lambda before, weights: mx.maximum(before, weights.max(axis=(1, 2))))
    caches = _prefilled(model, context, tally)
    if not all(cache.is_trimmable() for cache in caches):
        raise ModelError("this model's caches cannot go back to the end of the context, which kvzip repeats in parts")
    started, count = time.perf_counter(), 0
    for start in range(first, len(context), part):
        repeated = list(context[start : start + part])
        request = tokenizer.encode(REPEAT if start == first else REPEAT_FROM, add_special_tokens=False)
        before = [] if start == first else list(context[max(first, start - STARTING_TOKENS) : start])
        tokens = [*request, *before, *answer, *repeated]
        tally.start(caches, (min(sinks, start), start, start + len(repeated)))
        _compute(model, caches, tokens)
        for cache in caches:
            cache.trim(len(tokens))
        count += len(tokens)
    return tally.result(context, count, started)


class _Tally:
    """Adds up, by layer, weights ``[n_kv_heads, group, n, length]`` of later queries to the context's rows."""

    def __init__(self, length: int, add: Callable[[mx.array, mx.array], mx.array]) -> None:
        self._length, self._add = length, add
        self._among: tuple[int, int, int] | None = None
        self._sums: dict[int, mx.array] | None = None
        self._layers = 0

    def start(self, caches: Sequence[Any], among: tuple[int, int, int] | None) -> None:
        """Count queries from now on; ``among`` are a number of first rows, and start and end of the compared ones."""
        self._among, self._layers = among, len(caches)
        self._sums = self._sums if self._sums is not None else {}

    def observe(self, cache: LayerCache, queries: mx.array, scale: float) -> None:
        if self._sums is None:
            return
        keys = cache.rows.decode()[0][0].astype(mx.float32)
        kv_heads, held, width = keys.shape
        sinks, start, end = self._among or (0, 0, self._length)
        rows = mx.concatenate([mx.arange(sinks), mx.arange(start, end), mx.arange(self._length, held)])
        keys = keys[:, rows]
        total = self._sums.get(cache.place.layer, mx.zeros((kv_heads, self._length)))
        for some, offset in _in_parts(queries, cache.offset):
            grouped = some.astype(mx.float32).reshape(kv_heads, -1, some.shape[2], width)
            logits = scale * (grouped @ mx.swapaxes(keys, -1, -2)[:, None])
            at = mx.arange(offset - some.shape[2], offset)[:, None]
            weights = mx.softmax(mx.where(rows <= at, logits, -mx.inf), axis=-1)[..., sinks : sinks + end - start]
            now = mx.pad(weights, [(0, 0), (0, 0), (0, 0), (start, self._length - end)])
            total = self._add(total, now)
        mx.eval(total)
        self._sums[cache.place.layer] = total

    def result(self, context: Sequence[int], computed: int, started: float) -> ContextScores:
        sums = self._sums or {}
        layers = tuple(np.array(sums[layer]) if layer in sums else None for layer in range(self._layers))
        return ContextScores(tuple(context), layers, computed, time.perf_counter() - started)


def _in_parts(queries: mx.array, offset: int) -> Iterator[tuple[mx.array, int]]:
    """Yield a few of the newest queries at a time, with the number of tokens up to their last."""
    count = queries.shape[2]
    for start in range(0, count, QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, count)
        yield queries[:, :, start:end], offset - count + end


def _prefilled(model: nn.Module, context: Sequence[int], tally: _Tally) -> list[Any]:
    if not context:
        raise ModelError("the context is empty: give it one token or more")
    caches = observed_caches(model, tally.observe)
    _compute(model, caches, context)
    return caches


def _compute(model: nn.Module, caches: list[Any], tokens: Sequence[int]) -> None:
    if not tokens:
        raise ModelError("there are no later tokens: give one or more")
    for start in range(0, len(tokens), PREFILL_STEP):
        mx.eval(model(mx.array([list(tokens[start : start + PREFILL_STEP])]), cache=caches))
