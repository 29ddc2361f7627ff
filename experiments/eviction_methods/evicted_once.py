"""Evict once, at the end of a prompt that is computed once for all methods, and lead or decode an answer behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches import make_caches
from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.observed_layers import observed_caches
from kvlab.caches.retention.base import Mask, Retention
from kvlab.caches.serialize import own_layers
from kvlab.errors import ModelError
from kvlab.models import LoadedModel


@dataclass(frozen=True)
class PromptPass:
    """A prompt that was computed with all of its rows, in one piece.

    Attributes:
        tokens: its token ids.
        layers: queries ``[1, n_heads, tokens, head_dim]``, keys and values ``[1, n_kv_heads, tokens, head_dim]``, and
            the scale of attention, for each layer.
        logits: logits behind its last token, ``[vocabulary]``.
    """

    tokens: tuple[int, ...]
    layers: tuple[tuple[mx.array, mx.array, mx.array, float], ...]
    logits: mx.array


class AsEvicted(Retention):
    """The retention of a prompt whose eviction is over: nothing more leaves, however long the answer is."""

    def __init__(self, before: Retention) -> None:
        self._before = before
        super().__init__(before.__class__.module, before.place)

    def mask(self, length: int, offset: int, count: int) -> Mask:
        return self._before.mask(length, offset, count)

    def positions(self, length: int, offset: int) -> mx.array:
        return self._before.positions(length, offset)

    @property
    def is_batchable(self) -> bool:
        return False

    @property
    def keeps_by_head(self) -> bool:
        return self._before.keeps_by_head


def prompt_pass(loaded: LoadedModel, tokens: Sequence[int]) -> PromptPass:
    """Compute a prompt. Raises ModelError where a layer has no plain KV cache, whose rows methods choose from."""
    found: dict[int, tuple[mx.array, mx.array, mx.array, float]] = {}

    def observe(cache: Any, queries: mx.array, scale: float) -> None:
        keys, values = cache.rows.decode()
        found[cache.place.layer] = (queries, keys, values, scale)

    caches = observed_caches(loaded.model, observe)
    logits = loaded.model(mx.array([list(tokens)]), cache=caches)[0, -1]
    if len(found) < len(caches):
        raise ModelError(
            f"{len(caches) - len(found)} layers of {loaded.name} have no plain KV cache: use another model"
        )
    layers = tuple(found[layer] for layer in range(len(caches)))
    mx.eval(logits, [list(one[:3]) for one in layers])
    return PromptPass(tuple(tokens), layers, logits)


def evicted(loaded: LoadedModel, prompt: PromptPass, policy: str) -> tuple[list[Any], mx.array]:
    """Return the caches of a prompt that ``policy`` has evicted from at its end, and the logits behind the prompt.

    A policy that evicts while the prompt is computed, as ``local`` does, computes it anew; all others get the keys,
    values and queries of the pass.
    """
    caches = make_caches(loaded.model, policy, prompt_tokens=len(prompt.tokens), token_ids=lambda: prompt.tokens)
    own, logits = list(own_layers(caches)), prompt.logits
    if any(cache.retention.room(0) is not None for cache in own):
        logits = loaded.model(mx.array([list(prompt.tokens)]), cache=caches)[0, -1]
    else:
        for cache, (queries, keys, values, scale) in zip(own, prompt.layers, strict=True):
            cache.update_and_fetch(keys, values)
            cache.skip_attention(len(prompt.tokens))
            cache.retention.note(cache.rows, queries, cache.offset, scale)
            if cache.retention.is_due(cache.length, cache.offset, len(prompt.tokens)):
                cache.retention.evict(cache.rows, cache.offset, scale)
    mx.eval(logits, [cache.state for cache in own])
    for cache in own:
        cache.retention.check_all_scores()
        cache.retention = AsEvicted(cache.retention)
    return caches, logits


def kept_bytes(caches: Sequence[Any]) -> int:
    """Return the bytes of the rows that stay, without storage that is allocated beyond them."""
    return sum(_row_bytes(cache.rows) for cache in own_layers(caches))


def _row_bytes(rows: KVBuffer) -> int:
    keys, values = rows.decode()
    return sum(rows.head_lengths) * (keys.shape[-1] * keys.itemsize + values.shape[-1] * values.itemsize)


def led(loaded: LoadedModel, caches: list[Any], logits: mx.array, answer: Sequence[int]) -> mx.array:
    """Lead an answer through caches; return log-probabilities at each of its tokens, float32 ``[tokens, vocabulary]``.

    ``logits`` are those behind the prompt. The answer is computed in one piece, its last token is not.
    """
    found = logits[None].astype(mx.float32)
    if len(answer) > 1:
        behind = loaded.model(mx.array([list(answer[:-1])]), cache=caches)[0]
        found = mx.concatenate([found, behind.astype(mx.float32)])
    return found - mx.logsumexp(found, axis=-1, keepdims=True)


def first_part(prompt: PromptPass, count: int) -> PromptPass:
    """Return the pass of the first ``count`` tokens of a prompt; the logits of a shorter one are not known, and NaN."""
    if count == len(prompt.tokens):
        return prompt
    layers = tuple((q[:, :, :count], k[:, :, :count], v[:, :, :count], scale) for q, k, v, scale in prompt.layers)
    return PromptPass(prompt.tokens[:count], layers, mx.full(prompt.logits.shape, mx.nan, prompt.logits.dtype))


def decoded(
    loaded: LoadedModel, made: Sequence[tuple[list[Any], mx.array]], later: Sequence[int], max_tokens: int
) -> list[list[int]]:
    """Decode greedily behind the caches and logits of several prompts of one length, side by side.

    ``later`` are tokens that follow each prompt, such as a question. An answer ends before an end token, or after
    ``max_tokens``.
    """
    layers = [BatchLayerCache(list(same)) for same in zip(*(own_layers(caches) for caches, _ in made), strict=True)]
    logits = mx.stack([one for _, one in made])
    if later:
        logits = loaded.model(mx.array([list(later)] * len(made)), cache=layers)[:, -1]
    found: list[list[int]] = [[] for _ in made]
    open_ones = set(range(len(made)))
    for _ in range(max_tokens):
        best = [int(token) for token in np.array(logits.argmax(axis=-1))]
        open_ones -= {index for index in open_ones if best[index] in loaded.eos}
        for index in open_ones:
            found[index].append(best[index])
        if not open_ones:
            break
        logits = loaded.model(mx.array(best)[:, None], cache=layers)[:, -1]
    return found
