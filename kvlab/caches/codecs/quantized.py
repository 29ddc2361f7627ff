"""``QuantizedCodec``: affine-quantized rows, as MLX writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.base import Segment
from kvlab.caches.codecs.base import Arrays, Codec
from kvlab.caches.codecs.tiled_attention import EncodedTiles, attend_in_tiles, length_of
from kvlab.errors import ModelError
from kvlab.policies import Module, Quantized

MAX_QUERIES_ON_PACKED = 8
"""Most queries for which attention reads quantized rows directly; for more, dequantizing the rows once is faster."""

MAX_DECODED_ROWS = 2048
"""Most rows of a layer that are dequantized at once; of more, a tile at a time, so that memory stays bounded."""


class QuantizedCodec(Codec):
    """Affine-quantized rows, as ``mx.quantize`` writes them: packed integers, scales and biases of K and of V.

    A side that stays raw is one array, ``k`` or ``v``.
    """

    module: ClassVar[type[Module]] = Quantized

    def __init__(self, module: Quantized) -> None:
        self.bits = {side: module.bits_of(side) for side in ("k", "v")}
        self.group = module.group

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        new: dict[str, mx.array] = {}
        for side, array in (("k", keys), ("v", values)):
            bits = self.bits[side]
            if bits is None:
                new[side] = array
                continue
            if array.shape[-1] % self.group:
                raise ModelError(
                    f"the model's heads are {array.shape[-1]} wide, which group={self.group} does not divide: "
                    f"write quantized:bits={bits},group=32 if that divides it, or raw"
                )
            parts = mx.quantize(array, group_size=self.group, bits=bits)
            new.update(zip((f"{side}.packed", f"{side}.scales", f"{side}.biases"), parts, strict=True))
        return new

    def decode(self, rows: Arrays) -> Segment:
        keys, values = (
            rows[side] if bits is None else mx.dequantize(*_triple(rows, side), group_size=self.group, bits=bits)
            for side, bits in self.bits.items()
        )
        return keys, values

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        return self._with_keys(queries, rows).astype(mx.float32)

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        return self._with_values(weights, rows).astype(mx.float32)

    def _with_keys(self, queries: mx.array, rows: Arrays) -> mx.array:
        """Multiply queries with the keys, in the dtype of the queries."""
        if (bits := self.bits["k"]) is None:
            return queries @ mx.swapaxes(rows["k"], -1, -2).astype(queries.dtype)
        return mx.quantized_matmul(queries, *_triple(rows, "k"), transpose=True, group_size=self.group, bits=bits)

    def _with_values(self, weights: mx.array, rows: Arrays) -> mx.array:
        """Multiply weights with the values, in the dtype of the weights."""
        if (bits := self.bits["v"]) is None:
            return weights @ rows["v"].astype(weights.dtype)
        return mx.quantized_matmul(weights, *_triple(rows, "v"), transpose=False, group_size=self.group, bits=bits)

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
            if sum(length_of(rows) for rows in segments) <= MAX_DECODED_ROWS:
                return super().attend(backend, queries, segments, scale, mask, sinks)
            tiles = [EncodedTiles(self.decode, rows) for rows in segments]
            return attend_in_tiles(backend, queries, tiles, scale, mask, sinks)
        [rows] = segments
        kv_heads, length = next(iter(rows.values())).shape[1:3]
        grouped = (queries * scale).reshape(batch, kv_heads, (heads // kv_heads) * count, dim)
        scores = self._with_keys(grouped, rows)
        if mask is not None:
            scores = scores.reshape(batch, kv_heads, -1, count, length)
            by_head = mask[:, :, None] if mask.shape[1] == 1 else mask.reshape(batch, kv_heads, -1, count, length)
            scores = mx.where(by_head, scores, mx.finfo(scores.dtype).min)
            scores = scores.reshape(batch, kv_heads, -1, length)
        weights = mx.softmax(scores, axis=-1, precise=True)
        out = self._with_values(weights, rows)
        return out.reshape(batch, heads, count, out.shape[-1])


def _triple(rows: Arrays, side: str) -> tuple[mx.array, mx.array, mx.array]:
    return rows[f"{side}.packed"], rows[f"{side}.scales"], rows[f"{side}.biases"]
