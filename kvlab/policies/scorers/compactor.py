"""``Compactor``: keep rows with keys unlike the others and rows that their neighbours attend to, before and behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import numpy as np

from kvlab.errors import PolicyError
from kvlab.policies.scorers.base import ScoreContext, Scorer
from kvlab.policies.scorers.model_layer import rope_of, without_rope

RIDGE = 1e-2
"""Added to the diagonal of the sketched keys' products, so that they can be inverted."""
MIN_DEVIATION = 1e-6
"""Smallest standard deviation that scores are divided by."""


@dataclass(frozen=True)
class Compactor(Scorer):
    """Rows with a large leverage of keys, and rows that the queries of their chunk attend to, stay. No question needed.

    Follows Chari and Van Durme 2025, in the form that kvpress took from its authors. Between the ``sinks`` first and
    the ``latest`` rows, which stay, two scores are brought to mean 0 and deviation 1 over a layer, and added: the
    attention that all queries of a chunk of ``chunk`` rows pay in it, later rows included, times the norm of the value,
    smoothed over three rows; and ``blending`` times the leverage of the key before RoPE, in ``sketch`` random
    directions. As in kvpress, logits are not divided by the root of head_dim.

    Deviations: the filling of the last chunk is masked (kvpress gives it logits of 0); the sketch is the same in each
    call, drawn from a seed. While decoding, queries of earlier rows are gone, and leverage alone decides (the paper
    compresses the prompt only); of a head with no more rows than ``sketch``, whose leverages are equal, the newest rows
    stay. The queries of the whole prompt are kept until its end.

    Args:
        sinks: first tokens that always stay.
        latest: newest rows that always stay.
        chunk: rows of a chunk.
        sketch: random directions that keys are projected to.
        blending: weight of leverage; none is the share of rows that leave, kvpress' default.
    """

    name: ClassVar[str] = "compactor"
    paper: ClassVar[str] = "Compactor, arXiv:2507.08143"
    reads_all_queries: ClassVar[bool] = True
    sinks: int = 8
    latest: int = 4
    chunk: int = 256
    sketch: int = 48
    blending: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sinks", "latest"):
            if getattr(self, name) < 0:
                raise PolicyError(f"compactor: {name}={getattr(self, name)} is negative; write {name}=0 or more")
        for name in ("chunk", "sketch"):
            if getattr(self, name) < 1:
                raise PolicyError(f"compactor: {name}={getattr(self, name)} must be 1 or more")
        if self.blending is not None and self.blending < 0:
            raise PolicyError(f"compactor: blending={self.blending} is negative; write blending=0 or more")

    def score(self, context: ScoreContext) -> mx.array:
        length = context.positions.shape[-1]
        is_latest = mx.arange(length) >= length - self.latest
        is_sink = (context.positions >= 0) & (context.positions < self.sinks)
        is_compared = (context.positions >= 0) & ~is_sink & ~is_latest
        leaving = 1 - min(1.0, self.rows(context.offset, context.layer, context.n_layers) / length)
        blending = leaving if self.blending is None else self.blending
        scores = blending * _standardized(self._leverage(context, is_compared), is_compared)
        has_all_queries = context.queries is not None and context.queries.shape[2] == length == context.offset
        if has_all_queries and length > self.sinks + self.latest:
            scores = scores + _standardized(self._attention(context), is_compared)
        return mx.where(is_compared, scores, mx.inf)

    def _leverage(self, context: ScoreContext, is_compared: mx.array) -> mx.array:
        """Return x (X'X)^-1 x' of each row x of the sketched keys, centred over the compared rows."""
        weight = is_compared.astype(mx.float32)[..., None]
        keys = without_rope(rope_of(context, self.name), context.keys, mx.maximum(context.positions, 0))
        mean = (keys * weight).sum(axis=2, keepdims=True) / mx.maximum(weight.sum(axis=2, keepdims=True), 1)
        _, heads, _, width = keys.shape
        draws = np.random.default_rng([0, context.layer]).standard_normal((heads, width, self.sketch))
        sketched = ((keys - mean) * weight) @ mx.array((draws / self.sketch**0.5).astype(np.float32))
        products = np.array(mx.swapaxes(sketched, -1, -2) @ sketched).astype(np.float64)
        inverse = mx.array(np.linalg.inv(products + RIDGE * np.eye(self.sketch)).astype(np.float32))
        leverage = mx.maximum(((sketched @ inverse) * sketched).sum(axis=-1), 0)
        # Any few rows are independent, and of the same leverage but for rounding.
        return mx.where(is_compared.sum(axis=-1, keepdims=True) > self.sketch, leverage, 0.0)

    def _attention(self, context: ScoreContext) -> mx.array:
        """Return the weights that rows get from all queries of their chunk, times values' norms, smoothed."""
        _, kv_heads, length, width = context.keys.shape
        if context.queries is None:
            raise PolicyError("compactor: the cache handed over no queries: it must keep those of the prompt")
        end = length - self.latest
        queries = context.queries.reshape(kv_heads, -1, length, width)
        sums = []
        for start in range(self.sinks, end, self.chunk):
            some = slice(start, min(start + self.chunk, end))
            keys = context.keys[0, :, None, some].astype(mx.float32)
            logits = queries[:, :, some].astype(mx.float32) @ mx.swapaxes(keys, -1, -2)
            sums.append(mx.softmax(logits, axis=-1).sum(axis=-2).mean(axis=1))
        norms = mx.linalg.norm(context.values[0].astype(mx.float32), axis=-1)[:, self.sinks : end]
        padded = mx.pad(mx.concatenate(sums, axis=-1) * norms, [(0, 0), (1, 1)])
        smoothed = (padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]) / 3
        return mx.pad(smoothed, [(0, 0), (self.sinks, self.latest)])[None]


def _standardized(scores: mx.array, is_compared: mx.array) -> mx.array:
    """Return scores with mean 0 and standard deviation 1 over the compared rows of all heads."""
    count = mx.maximum(is_compared.sum(), 2)
    mean = mx.where(is_compared, scores, 0.0).sum() / count
    variance = mx.where(is_compared, (scores - mean) ** 2, 0.0).sum() / (count - 1)
    return (scores - mean) / mx.maximum(mx.sqrt(variance), MIN_DEVIATION)
