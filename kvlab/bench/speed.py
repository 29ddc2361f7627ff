"""How fast a model is here, measured in a moment: what benchmarks choose their sizes by."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from kvlab.bench.session import Clock
from kvlab.models import LoadedModel

PROBES = (16, 128)
"""Prompt tokens of two probes; the second is left out where the first took longer than SLOW_S."""
SLOW_S = 1.0


@dataclass(frozen=True)
class ModelSpeed:
    """Seconds per prompt token, and per decode step of one sequence; bytes of KV that one token more takes."""

    prompt_token_s: float
    step_s: float
    kv_bytes: float


def measure_speed(loaded: LoadedModel, clock: Clock = time.perf_counter) -> ModelSpeed:
    """Prefill a few tokens and decode some, alone and with mlx-lm's own caches; the first time warms up."""
    prompt_token_s = 0.0
    caches: Any = []
    for count in PROBES:
        caches = make_prompt_cache(loaded.model)
        prompt_token_s = _seconds(loaded, [1] * count, caches, clock) / count
        if prompt_token_s * count > SLOW_S:
            break
    step_s = min(_seconds(loaded, [1], caches, clock) for _ in range(3))
    arrays: Any = tree_flatten([cache.state for cache in caches])
    rows = [array for _, array in arrays if isinstance(array, mx.array) and array.ndim == 4]  # [1, heads, length, dim]
    return ModelSpeed(prompt_token_s, step_s, sum(array.nbytes / array.shape[2] for array in rows))


def _seconds(loaded: LoadedModel, tokens: list[int], caches: Any, clock: Clock) -> float:
    started = clock()
    logits = loaded.model(mx.array([tokens]), cache=caches)
    mx.eval(logits, [cache.state for cache in caches])
    return clock() - started
