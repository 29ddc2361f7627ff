"""``RotatedCodec``: affine-quantized rows behind a Hadamard rotation of each head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.base import Segment
from kvlab.caches.codecs.base import Arrays, Codec
from kvlab.caches.codecs.quantized import MAX_QUERIES_ON_PACKED, QuantizedCodec
from kvlab.caches.codecs.tiled_attention import EncodedTiles, attend_in_tiles
from kvlab.errors import ModelError
from kvlab.policies import Module, Quantized, Rotated

VALUE_BLOCK_CHANNELS = 64
"""Most channels of values that are rotated together, as in llama.cpp, which measured smaller blocks as better."""


class RotatedCodec(Codec):
    """Rows as ``quantized`` writes them, after a Hadamard rotation in blocks of channels.

    The rotation is its own inverse. Attention works on rotated rows: queries are rotated, and its output once.
    """

    module: ClassVar[type[Module]] = Rotated

    def __init__(self, module: Rotated) -> None:
        self.group = module.group
        self.turned = {side: module.bits_of(side) is not None for side in ("k", "v")}
        self.stored = QuantizedCodec(Quantized(module.bits, module.group, module.k_bits, module.v_bits))

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        for side, array in (("k", keys), ("v", values)):
            if self.turned[side] and array.shape[-1] % self.group:
                raise ModelError(
                    f"the model's heads are {array.shape[-1]} wide, which group={self.group} does not divide: write "
                    "rotated:group=32 if that divides it, or raw"
                )
        return self.stored.encode(self._turn("k", keys), self._turn("v", values))

    def decode(self, rows: Arrays) -> Segment:
        keys, values = self.stored.decode(rows)
        return self._turn("k", keys), self._turn("v", values)

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        return self.stored.scores(self._turn("k", queries), rows)

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        return self._turn("v", self.stored.mix(weights, rows))

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        segments: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        turned = self._turn("k", queries)
        is_packed = len(segments) == 1 and queries.shape[2] <= MAX_QUERIES_ON_PACKED and sinks is None
        if is_packed and not isinstance(mask, str):
            out = self.stored.attend(backend, turned, segments, scale, mask, sinks)
        else:
            tiles = [EncodedTiles(self.stored.decode, rows) for rows in segments]
            out = attend_in_tiles(backend, turned, tiles, scale, mask, sinks)
        return self._turn("v", out)

    def _turn(self, side: str, array: mx.array) -> mx.array:
        """Rotate keys, queries, values or outputs ``[..., channels]`` of a quantized side; computed in float32."""
        if not self.turned[side]:
            return array
        block = array.shape[-1] & -array.shape[-1]
        if side == "v":
            block = min(block, VALUE_BLOCK_CHANNELS)
        blocks = array.astype(mx.float32).reshape(*array.shape[:-1], -1, block)
        return mx.hadamard_transform(blocks).reshape(array.shape).astype(array.dtype)
