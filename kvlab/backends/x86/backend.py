"""``X86Backend``: for x86 CPUs, where MLX computes exponentials one by one and BLAS has the fastest products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvlab.backends.attention_state import AttentionState, merged
from kvlab.backends.base import Backend, BucketRule, ComputeThreads, KeyValueRows, ResumableWork, Segment
from kvlab.backends.mlx_backend import joined, over_all
from kvlab.backends.x86 import sgemm
from kvlab.backends.x86.blas_threads import BlasThreads
from kvlab.backends.x86.fast_exp import exp_composed
from kvlab.backends.x86.flash_attention import flash_attention
from kvlab.backends.x86.resumable import Resumable, maybe_yield

MIN_SCORES_TO_COMPOSE = 6000
"""Fewest scores of one query for which attention in parts is faster than MLX's; tuned with ``kvlab bench decode``."""

MIN_SCORES_FOR_FLASH = 1 << 17
"""Fewest scores of single queries that are computed at once, on all cores, although the thread waits for the result.
Check a change with ``kvlab bench decode``."""


class X86Backend(Backend):
    """Computes attention of several queries by BLAS and NumPy, and that of single ones by composed exponentials."""

    name: ClassVar[str] = "x86"
    buckets: ClassVar[BucketRule] = BucketRule(slots=16)
    owns_attention: ClassVar[bool] = True
    composes_batches: ClassVar[bool] = True
    evicts_alone: ClassVar[bool] = True
    copies_in_background: ClassVar[bool] = False
    prefill_step: ClassVar[int] = 512

    def __init__(self) -> None:
        self._has_blas = sgemm.is_available()
        self.is_preemptible = self._has_blas  # type: ignore[misc]

    def attention(
        self,
        queries: mx.array,
        segments: Sequence[Segment],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        batch, heads, count, dim = queries.shape
        by_head = isinstance(mask, mx.array) and mask.shape[1] > 1
        if count == 1 or batch > 1 or by_head or not self._has_blas or queries.dtype != mx.float32:
            keys, values = joined(segments)
            mask = over_all(mask, keys.shape[2], count)
            return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)
        kv_heads = segments[-1][0].shape[1]
        grouped = (queries * scale).reshape(kv_heads, heads // kv_heads, count, dim).swapaxes(1, 2)
        got = flash_attention(grouped, segments, np.asarray(mask)[0, 0] if isinstance(mask, mx.array) else mask)
        total = got.sum_exp
        if sinks is not None:
            total = total + np.exp(np.asarray(sinks, np.float32).reshape(kv_heads, 1, -1, 1) - got.max_score)
        return mx.array(got.out / total).swapaxes(1, 2).reshape(1, heads, count, -1)

    def scaled_queries(self, queries: mx.array, scale: float) -> mx.array:
        return queries.astype(mx.float32) * scale

    def partial_attention(self, queries: mx.array, rows: KeyValueRows, mask: mx.array | None) -> AttentionState:
        plain = rows.plain
        batch, kv_heads, count, _ = queries.shape
        if plain is not None and batch == 1 and mask is None and self._is_worth_flash(kv_heads * count, plain):
            got = flash_attention(queries[0][:, :, None], [plain])
            return AttentionState(*(mx.array(part)[None, :, :, 0] for part in (got.out, got.max_score, got.sum_exp)))
        scores = rows.scores(queries)
        if mask is not None:
            scores = mx.where(mask, scores, mx.finfo(mx.float32).min)
        top = scores.max(axis=-1, keepdims=True)
        weights = exp_composed(scores - top)
        return AttentionState(rows.mix(weights), top, weights.sum(axis=-1, keepdims=True))

    def _is_worth_flash(self, rows: int, plain: Segment) -> bool:
        keys = plain[0]
        return self._has_blas and keys.dtype == mx.float32 and rows * keys.shape[2] >= MIN_SCORES_FOR_FLASH

    def merge(self, one: AttentionState, other: AttentionState) -> AttentionState:
        fields = (one.out, one.max_score, one.sum_exp, other.out, other.max_score, other.sum_exp)
        return AttentionState(*merged(*fields))

    def finish(self, state: AttentionState, dtype: mx.Dtype, sinks: mx.array | None) -> mx.array:
        total = state.sum_exp
        if sinks is not None:
            total = total + mx.exp(sinks[None, :, None] - state.max_score)
        return (state.out / total).astype(dtype)[:, :, None]

    def composes(self, scores: int) -> bool:
        return scores >= MIN_SCORES_TO_COMPOSE

    def shares_attention(self, readers: int, rows: int) -> bool:
        return True

    def resumable(self, steps: Iterator[None], wait_s: float) -> ResumableWork:
        def run() -> None:
            for _ in steps:
                maybe_yield(always=work.until == math.inf)

        work = Resumable(run, wait_s)
        return work

    def threads(self, model: nn.Module) -> ComputeThreads:
        return BlasThreads(model)

    def prefill_stream(self, decode_stream: Any) -> Any:
        """Return a stream of its own, so that products of prompts run on another core than decoding."""
        return mx.default_stream(mx.default_device())
