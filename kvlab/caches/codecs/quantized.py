"""``QuantizedCodec``: affine-quantized rows, as MLX writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.base import Segment
from kvlab.caches.codecs.base import Arrays, Codec
from kvlab.errors import ModelError
from kvlab.policies import Module, Quantized

MAX_QUERIES_ON_PACKED = 8
"""Most queries for which attention reads quantized rows directly; for more, dequantizing the rows once is faster."""


class QuantizedCodec(Codec):
    """Affine-quantized rows, as ``mx.quantize`` writes them: packed integers, scales and biases of K and of V."""

    module: ClassVar[type[Module]] = Quantized

    def __init__(self, module: Quantized) -> None:
        self.bits = module.bits
        self.group = module.group

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

    def decode(self, rows: Arrays) -> Segment:
        keys, values = (
            mx.dequantize(*_triple(rows, side), group_size=self.group, bits=self.bits) for side in ("k", "v")
        )
        return keys, values

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        return mx.quantized_matmul(
            queries, *_triple(rows, "k"), transpose=True, group_size=self.group, bits=self.bits
        ).astype(mx.float32)

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        return mx.quantized_matmul(
            weights, *_triple(rows, "v"), transpose=False, group_size=self.group, bits=self.bits
        ).astype(mx.float32)

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        segments: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        batch, heads, count, dim = queries.shape
        if len(segments) > 1 or count > MAX_QUERIES_ON_PACKED or sinks is not None or isinstance(mask, str):
            return super().attend(backend, queries, segments, scale, mask, sinks)
        [rows] = segments
        kv_heads, length = rows["k.packed"].shape[1:3]
        grouped = (queries * scale).reshape(batch, kv_heads, (heads // kv_heads) * count, dim)
        scores = mx.quantized_matmul(
            grouped, *_triple(rows, "k"), transpose=True, group_size=self.group, bits=self.bits
        )
        if mask is not None:
            scores = scores.reshape(batch, kv_heads, -1, count, length)
            by_head = mask[:, :, None] if mask.shape[1] == 1 else mask.reshape(batch, kv_heads, -1, count, length)
            scores = mx.where(by_head, scores, mx.finfo(scores.dtype).min)
            scores = scores.reshape(batch, kv_heads, -1, length)
        weights = mx.softmax(scores, axis=-1, precise=True)
        out = mx.quantized_matmul(weights, *_triple(rows, "v"), transpose=False, group_size=self.group, bits=self.bits)
        return out.reshape(batch, heads, count, out.shape[-1])


def _triple(rows: Arrays, side: str) -> tuple[mx.array, mx.array, mx.array]:
    return rows[f"{side}.packed"], rows[f"{side}.scales"], rows[f"{side}.biases"]
