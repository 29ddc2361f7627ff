"""Affine-quantized rows, as MLX writes them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from kvlab.backends.attention import segmented_attention
from kvlab.caches.codecs.base import Arrays, Sinks
from kvlab.errors import ModelError

FEW_QUERIES = 8
"""Up to this many queries, attention reads quantized rows directly; above, expanding them once is cheaper."""


class QuantizedCodec:
    """Affine-quantized rows, as ``mx.quantize`` writes them: packed integers, scales and biases of K and of V."""

    def __init__(self, bits: int, group: int) -> None:
        self.bits = bits
        self.group = group

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        new: dict[str, mx.array] = {}
        for side, array in (("k", keys), ("v", values)):
            if array.shape[-1] % self.group:
                raise ModelError(
                    f"the model's heads are {array.shape[-1]} wide, which group={self.group} does not divide: "
                    f"write quantized:bits={self.bits},group=32 if that divides it, or raw"
                )
            parts = mx.quantize(array, group_size=self.group, bits=self.bits)
            new.update(zip((f"{side}.packed", f"{side}.scales", f"{side}.biases"), parts, strict=True))
        return new

    def decode(self, rows: Arrays) -> tuple[mx.array, mx.array]:
        keys, values = (
            mx.dequantize(*self._triple(rows, side), group_size=self.group, bits=self.bits) for side in "kv"
        )
        return keys, values

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        return mx.quantized_matmul(
            queries, *self._triple(rows, "k"), transpose=True, group_size=self.group, bits=self.bits
        )

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        return mx.quantized_matmul(
            weights, *self._triple(rows, "v"), transpose=False, group_size=self.group, bits=self.bits
        )

    def attend(
        self,
        queries: mx.array,
        runs: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: Sinks,
    ) -> mx.array:
        batch, heads, count, dim = queries.shape
        if len(runs) > 1 or count > FEW_QUERIES or sinks is not None or isinstance(mask, str):
            return segmented_attention(queries, [self.decode(rows) for rows in runs], scale, mask, sinks)
        [rows] = runs
        kv_heads, length = rows["k.packed"].shape[1:3]
        grouped = (queries * scale).reshape(batch, kv_heads, (heads // kv_heads) * count, dim)
        scores = self.scores(grouped, rows)
        if mask is not None:
            scores = scores.reshape(batch, kv_heads, -1, count, length)
            scores = mx.where(mask[:, :, None], scores, mx.finfo(scores.dtype).min)
            scores = scores.reshape(batch, kv_heads, -1, length)
        out = self.mix(mx.softmax(scores, axis=-1, precise=True), rows)
        return out.reshape(batch, heads, count, out.shape[-1])

    @staticmethod
    def _triple(rows: Arrays, side: str) -> tuple[mx.array, mx.array, mx.array]:
        return rows[f"{side}.packed"], rows[f"{side}.scales"], rows[f"{side}.biases"]
