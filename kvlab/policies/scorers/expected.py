"""``Expected``: keep the rows that queries to come are expected to attend to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.model_layer import rope_of, without_rope

ROWS_AT_ONCE = 1024
"""Rows whose products with the covariance are computed together: memory is this times query heads times head_dim."""


@dataclass(frozen=True)
class Expected(Scorer):
    """Rows that future queries are expected to attend to stay, weighted by the length of their values.

    Follows Expected Attention (Devoto et al. 2025): the queries to come are taken to be normal, with the mean m and the
    covariance C of the last ``window`` ones, without RoPE; both are rotated by the average rotation of the next
    ``future`` positions. A query q then gives a key k the weight exp(q k / sqrt(d)), on average
    exp(m k / sqrt(d) + k' C k / 2 d). These go through a softmax over the rows, are averaged over the query heads of a
    group, and, with ``epsilon`` added, multiplied by the L2 norm of the value. The first ``sinks`` rows stay, and their
    queries do not count. The question need not be known.

    Deviations: kvpress takes the queries of the whole prompt at its end, and of the last 256 tokens while decoding;
    here it is the last ``window`` ones in both, so that memory does not grow with the prompt and a prompt that begins
    with stored KV keeps the same rows. Under ``criticalkv``, which weighs values itself, write ``value_norm=false``.

    Args:
        window: last queries whose mean and covariance are taken.
        future: next positions whose rotations are averaged.
        sinks: first tokens of the sequence that always stay.
        epsilon: added to a weight before the norm of its value counts; above 0, large values count more.
        value_norm: whether the norm of the value counts.
    """

    name: ClassVar[str] = "expected"
    paper: ClassVar[str] = "Expected Attention, arXiv:2510.00636"
    window: int = 128  # type: ignore[assignment]
    future: int = 512
    sinks: int = 4
    epsilon: float = 0.0
    value_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "future"):
            if getattr(self, name) < 1:
                raise PolicyError(f"expected: {name}={getattr(self, name)} must be 1 or more")
        for name in ("sinks", "epsilon"):
            if getattr(self, name) < 0:
                raise PolicyError(f"expected: {name}={getattr(self, name)} is negative; write {name}=0 or more")

    @property
    def latest_rows(self) -> int:
        return 0

    def score(self, context: ScoreContext) -> mx.array:
        mean, covariance = self._future_queries(context)
        is_sink = (context.positions >= 0) & (context.positions < self.sinks)
        is_out = is_sink | (context.positions < 0)
        logits = expected_logits(context.keys, mean, covariance, context.scale)
        heads, length = context.keys.shape[1:3]
        logits = mx.where(is_out[:, :, None], -mx.inf, logits.reshape(1, heads, -1, length))
        # Where all rows are sinks there is nothing to compare.
        weights = mx.where(is_out[:, :, None], 0.0, mx.softmax(logits, axis=-1))
        scores = weights.mean(axis=2)
        if self.value_norm:
            scores = (scores + self.epsilon) * mx.linalg.norm(context.values.astype(mx.float32), axis=-1)
        return mx.where(is_sink, scores.max() + 1, scores)

    def _future_queries(self, context: ScoreContext) -> tuple[mx.array, mx.array]:
        """Return mean ``[n_heads, head_dim]`` and covariance ``[n_heads, head_dim, head_dim]`` behind RoPE."""
        if context.queries is None:
            raise PolicyError("expected: the cache handed over no queries: it must keep the last ones of its window")
        rope = rope_of(context, self.name)
        _, heads, count, width = context.queries.shape
        first = context.offset - count
        skipped = min(max(0, self.sinks - first), count - 1)
        at = mx.broadcast_to(mx.arange(first + skipped, context.offset), (1, heads, count - skipped))
        queries = without_rope(rope, context.queries[:, :, skipped:], at)[0]
        mean = queries.mean(axis=1, keepdims=True)
        centred = queries - mean
        covariance = mx.swapaxes(centred, -1, -2) @ centred / (count - skipped)
        rotation = self._mean_rotation(rope, context.offset, width)
        return (mean @ rotation)[:, 0], mx.swapaxes(rotation, -1, -2) @ covariance @ rotation

    def _mean_rotation(self, rope: Callable[..., mx.array], offset: int, width: int) -> mx.array:
        """Return the average rotation of the next positions; ``x @ rotation`` rotates rows ``x``."""
        units = mx.broadcast_to(mx.eye(width)[None, :, None], (1, width, self.future, width))
        return rope(units, offset=offset)[0].mean(axis=1)


def expected_logits(keys: mx.array, mean: mx.array, covariance: mx.array, scale: float) -> mx.array:
    """Return ``scale m k + scale^2 k' C k / 2`` for each row, float32 ``[1, n_heads, length]``."""
    _, kv_heads, length, width = keys.shape
    mean = mean.reshape(1, kv_heads, -1, 1, width)
    covariance = covariance.reshape(1, kv_heads, -1, width, width)
    parts = []
    for start in range(0, length, ROWS_AT_ONCE):
        some = keys[:, :, None, start : start + ROWS_AT_ONCE].astype(mx.float32)
        spread = ((some @ covariance) * some).sum(axis=-1)
        parts.append(scale * (some * mean).sum(axis=-1) + scale * scale * spread / 2)
    return mx.concatenate(parts, axis=-1).reshape(1, -1, length)
