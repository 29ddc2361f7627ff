"""``TurboQuantCodec``: rows behind a random rotation, as the nearest centroids of their coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.base import Segment
from kvlab.caches.codecs.base import Arrays, Codec
from kvlab.caches.codecs.packed_codes import WORD_BITS
from kvlab.caches.codecs.raw import RawCodec
from kvlab.caches.codecs.tiled_attention import EncodedTiles, attend_in_tiles, mix_in_tiles, scores_in_tiles
from kvlab.caches.codecs.vector_quantizer import VectorQuantizer
from kvlab.errors import ModelError
from kvlab.policies import Module, TurboQuant


class TurboQuantCodec(Codec):
    """Rows as packed codes and a scale each; a side that stays raw is one array, ``k`` or ``v``.

    Attention works on rotated rows, a tile at a time: queries are rotated, and its output once.
    """

    module: ClassVar[type[Module]] = TurboQuant

    def __init__(self, module: TurboQuant) -> None:
        def quantizer(side: str, projection: bool) -> VectorQuantizer | None:
            bits = module.bits_of(side)
            return None if bits is None else VectorQuantizer(bits, module.length, module.seed, projection)

        self.sides = {"k": quantizer("k", module.projection), "v": quantizer("v", False)}
        self.boundary = module.boundary

    def for_layer(self, layer: int, n_layers: int) -> Codec:
        return self if self.boundary <= layer < n_layers - self.boundary else RawCodec()

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        rows: dict[str, mx.array] = {}
        for side, array in (("k", keys), ("v", values)):
            if (quantizer := self.sides[side]) is None:
                rows[side] = array
                continue
            if array.shape[-1] % WORD_BITS:
                raise ModelError(
                    f"the model's heads are {array.shape[-1]} wide, and turboquant packs codes of {WORD_BITS} channels "
                    "into words: write quantized or raw"
                )
            rows |= {f"{side}.{name}": part for name, part in quantizer.encode(array).items()}
        return rows

    def decode(self, rows: Arrays) -> Segment:
        keys, values = (self._decode_side(side, rows) for side in ("k", "v"))
        return keys, values

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        return scores_in_tiles(lambda tile: self._turned("k", tile), self._turn("k", queries), _side("k", rows))

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        return self._turn_back("v", mix_in_tiles(lambda tile: self._turned("v", tile), weights, _side("v", rows)))

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        segments: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        def turned(tile: Arrays) -> Segment:
            return self._turned("k", tile), self._turned("v", tile)

        tiles = [EncodedTiles(turned, rows) for rows in segments]
        out = attend_in_tiles(backend, self._turn("k", queries), tiles, scale, mask, sinks)
        return self._turn_back("v", out).astype(queries.dtype)

    def _turned(self, side: str, rows: Arrays) -> mx.array:
        """Return the rotated rows of a side in float32; those of a raw side as they are."""
        quantizer = self.sides[side]
        if quantizer is None:
            return rows[side].astype(mx.float32)
        mine = {name.partition(".")[2]: array for name, array in _side(side, rows).items()}
        return quantizer.decode_turned(mine)

    def _decode_side(self, side: str, rows: Arrays) -> mx.array:
        if self.sides[side] is None:
            return rows[side]
        return self._turn_back(side, self._turned(side, rows)).astype(rows[f"{side}.scale"].dtype)

    def _turn(self, side: str, vectors: mx.array) -> mx.array:
        quantizer = self.sides[side]
        return vectors if quantizer is None else quantizer.turn(vectors.astype(mx.float32))

    def _turn_back(self, side: str, vectors: mx.array) -> mx.array:
        quantizer = self.sides[side]
        return vectors if quantizer is None else quantizer.turn_back(vectors.astype(mx.float32))


def _side(side: str, rows: Arrays) -> dict[str, mx.array]:
    return {name: array for name, array in rows.items() if name.startswith(side)}
