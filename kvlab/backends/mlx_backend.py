"""``MlxBackend``: for Metal and CUDA: MLX's own kernels, as few in a step as possible."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from kvlab.backends.attention_state import AttentionState, merged
from kvlab.backends.base import Backend, BucketRule, ComputeThreads, KeyValueRows, ResumableWork, Segment

MIN_SHARED_READS = 2048
"""Least product of rows and readers of a shared prefix for which a batch attends to it together.

Attention in parts launches 19 kernels more a layer: about 75 microseconds at 4 each. Below this product it is faster to
concatenate the prefix and own rows for MLX's fused attention, which moves the rows of every reader three times: for 8
KV heads of 128, 2,048 rows are 8 MB, 60 microseconds at 400 GB/s. A single reader always concatenates. Computed from
these figures, not measured on Metal.
"""


class MlxBackend(Backend):
    """Uses fused attention where no rows are shared; attention in parts computes scores and sums in float32.

    The limit on buckets trades memory for kernels: each further bucket costs 6 kernels a layer and step, at 3 to 5
    microseconds a launch.
    """

    name: ClassVar[str] = "mlx"
    buckets: ClassVar[BucketRule] = BucketRule(slots=32, buckets=2, growth_least=64, growth_most=256)

    def attention(
        self,
        queries: mx.array,
        segments: Sequence[Segment],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        keys, values = joined(segments)
        mask = over_all(mask, keys.shape[2], queries.shape[2])
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask, sinks=sinks)

    def scaled_queries(self, queries: mx.array, scale: float) -> mx.array:
        return _scaled(queries, scale)

    def partial_attention(self, queries: mx.array, rows: KeyValueRows, mask: mx.array | None) -> AttentionState:
        scores = rows.scores(queries)
        if mask is not None:
            scores = mx.where(mask, scores, mx.finfo(mx.float32).min)
        top = scores.max(axis=-1, keepdims=True)
        weights = _weights(scores, top)
        return AttentionState(rows.mix(weights), top, weights.sum(axis=-1, keepdims=True))

    def merge(self, one: AttentionState, other: AttentionState) -> AttentionState:
        fields = (one.out, one.max_score, one.sum_exp, other.out, other.max_score, other.sum_exp)
        return AttentionState(*_merged(*fields))

    def finish(self, state: AttentionState, dtype: mx.Dtype, sinks: mx.array | None) -> mx.array:
        total = state.sum_exp
        if sinks is not None:
            total = _with_sinks(state.max_score, total, sinks[None, :, None])
        return _quotient(dtype)(state.out, total)[:, :, None]

    def shares_attention(self, readers: int, rows: int) -> bool:
        return readers > 1 and readers * rows >= MIN_SHARED_READS

    def resumable(self, steps: Iterator[None], wait_s: float) -> ResumableWork:
        return StepByStep(steps)

    def threads(self, model: nn.Module) -> ComputeThreads:
        return NoThreads()


class StepByStep:
    """Work that is interrupted between two steps only. Implements ``ResumableWork``."""

    def __init__(self, steps: Iterator[None]) -> None:
        self._steps = steps
        self.wait_s = 0.0

    def resume(self, until: float) -> None:
        next(self._steps, None)

    def stop(self) -> None:
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()


class NoThreads:
    """Does nothing, because the device schedules its own threads. Implements ``ComputeThreads``."""

    def choose(self, rows: int, *, beside: bool = False) -> None: ...

    def restore(self) -> None: ...


def joined(segments: Sequence[Segment]) -> Segment:
    """Concatenate segments along their rows."""
    if len(segments) == 1:
        return segments[0]
    return mx.concatenate([keys for keys, _ in segments], axis=2), mx.concatenate([v for _, v in segments], axis=2)


def over_all(mask: mx.array | str | None, length: int, count: int) -> mx.array | str | None:
    """Extend a mask of the last segment to all ``length`` rows: those before it are visible."""
    if not isinstance(mask, mx.array) or mask.shape[-1] == length:
        return None if mask == "causal" and count == 1 else mask
    return mx.pad(mask, [(0, 0)] * (mask.ndim - 1) + [(length - mask.shape[-1], 0)], constant_values=True)


@functools.partial(mx.compile, shapeless=True)
def _scaled(queries: mx.array, scale: float) -> mx.array:
    return queries.astype(mx.float32) * scale


_merged = mx.compile(merged)


@functools.cache
def _quotient(dtype: mx.Dtype) -> Callable[[mx.array, mx.array], mx.array]:
    """One kernel that divides in float32 and rounds once, to ``dtype``."""
    return mx.compile(lambda out, total: (out / total).astype(dtype))


@mx.compile
def _weights(scores: mx.array, top: mx.array) -> mx.array:
    return mx.exp(scores - top)


@mx.compile
def _with_sinks(top: mx.array, total: mx.array, sinks: mx.array) -> mx.array:
    return total + mx.exp(sinks.astype(mx.float32) - top)
