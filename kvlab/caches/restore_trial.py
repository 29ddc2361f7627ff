"""Find out by a trial whether a model goes on from KV at rest as it does from live KV, and within one chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvlab.caches import serialize
from kvlab.caches.batching_trial import MAX_TRIALS, TRIAL_TOKENS, differ
from kvlab.caches.cache_loader import CacheLoader

STORED_TOKENS, LATER_TOKENS = 7, 4


def try_restore(model: nn.Module, make: Callable[[], Sequence[Any]]) -> str:
    """Return why KV at rest of ``model`` cannot be used; empty where it can.

    Some tokens are computed in caches of ``make``, stored, and loaded into other ones; the logits behind them are
    compared with those of the first caches, and of the same tokens in one chunk.
    """
    for seed in range(MAX_TRIALS):
        try:
            live, restored, whole = _logits(model, make, seed)
        except Exception as error:  # noqa: BLE001 - caches of a model's own may raise nearly everything
            return f"its caches cannot be filled from outside ({type(error).__name__})"
        if not differ(live, restored) and not differ(whole, restored):
            return ""
    return "restored KV gives other logits" if differ(live, restored) else "a prompt in two chunks gives other logits"


def _logits(model: nn.Module, make: Callable[[], Sequence[Any]], seed: int) -> tuple[mx.array, mx.array, mx.array]:
    """Return the last logits after live KV, after restored KV, and of a whole prompt, each of a prefill and a step."""
    tokens = [1 + (29 * seed + 7 * i) % TRIAL_TOKENS for i in range(STORED_TOKENS + LATER_TOKENS)]
    first, later = tokens[:STORED_TOKENS], tokens[STORED_TOKENS:]
    live, whole, restored = list(make()), list(make()), list(make())
    model(mx.array([first]), cache=live)
    mx.eval([cache.state for cache in live])
    _restore(live, restored, STORED_TOKENS)
    return _go_on(model, live, later), _go_on(model, restored, later), _go_on(model, whole, tokens)


def _restore(live: Sequence[Any], empty: Sequence[Any], tokens: int) -> None:
    """Fill ``empty`` with the KV of ``live``, by way of arrays as a store keeps them."""
    rows = serialize.as_bits(serialize.token_rows(live))
    [block] = serialize.to_blocks({name: np.asarray(array) for name, array in rows.items()}, 0, tokens, tokens)
    loader = CacheLoader(empty, tokens)
    loader.take(block, 0)
    loader.finish(tokens, serialize.to_checkpoint(live) if serialize.has_state(live) else None)


def _go_on(model: nn.Module, caches: list[Any], tokens: list[int]) -> mx.array:
    """Return the last logits ``[2, vocabulary]`` of a prefill of all tokens but one, and of a step."""
    prefill = model(mx.array([tokens[:-1]]), cache=caches)[0, -1]
    logits = mx.stack([prefill, model(mx.array([tokens[-1:]]), cache=caches)[0, -1]])
    mx.eval(logits)
    return logits
