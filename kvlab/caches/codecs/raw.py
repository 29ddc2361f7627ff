"""Rows as the model computes them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from kvlab.backends.attention import segmented_attention
from kvlab.caches.codecs.base import Arrays, Sinks


class RawCodec:
    """Rows in the model's own dtype: arrays ``k`` and ``v``."""

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        return {"k": keys, "v": values}

    def decode(self, rows: Arrays) -> tuple[mx.array, mx.array]:
        return rows["k"], rows["v"]

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        return queries @ mx.swapaxes(rows["k"], -1, -2)

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        return weights @ rows["v"]

    def attend(
        self,
        queries: mx.array,
        runs: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: Sinks,
    ) -> mx.array:
        return segmented_attention(queries, [self.decode(rows) for rows in runs], scale, mask, sinks)
