"""Blocks at rest whose rows are encoded all together: the code's bytes, dealt out over the block's tokens."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches.cache_loader import CacheLoader
from kvlab.caches.serialize import ArrayDescription, Payload, PayloadError, as_bits, cache_leaves
from kvlab.caches.storage_codec import PlainRows, StorageCodec
from kvlab.caches.storage_codec.samples import SINKS
from kvlab.errors import ModelError

CODE = "all:code:uint8"
"""Name of the only array of a block."""
SIZE = struct.Struct("<I")
"""Number of bytes of the code, which stand before it."""


class PackedBlocks:
    """Turns rows of token blocks into packed blocks and back, for the caches of one model."""

    def __init__(self, codec: StorageCodec) -> None:
        self._codec = codec
        self._layers = range(len(codec.transform.layers))

    def plain(self, rows: Mapping[str, mx.array], start: int, end: int, block: int) -> list[PlainRows]:
        """Return the rows of the tokens ``start`` to ``end``, block by block, ready to be encoded.

        ``rows`` are those of ``serialize.token_rows``. Raises ModelError for those of another model.
        """
        if start >= end:
            return []
        if min(block, end - start) >= SINKS or start >= SINKS:
            return self._plain_of(rows, start, end).blocks(block)
        return [self._plain_of(rows, at, min(at + block, end)) for at in range(start, end, block)]

    def _plain_of(self, rows: Mapping[str, mx.array], start: int, end: int) -> PlainRows:
        layers = [
            (rows[f"{layer}:k"][:, :, start:end], rows[f"{layer}:v"][:, :, start:end]) if f"{layer}:k" in rows else None
            for layer in self._layers
        ]
        return self._codec.plain(layers, start)

    def pack(self, plain: PlainRows) -> Payload:
        """Return a block at rest: one array uint8 ``[1, tokens, n]``. Uses NumPy only."""
        code = self._codec.encode_plain(plain)
        data = SIZE.pack(len(code)) + code
        each = math.ceil(len(data) / plain.count)
        return {CODE: np.frombuffer(data.ljust(each * plain.count, b"\0"), np.uint8).reshape(1, plain.count, each)}

    def unpack(self, payload: Payload) -> dict[str, np.ndarray]:
        """Return the rows of a block ``[n_kv_heads, tokens, width]``, named as they are stored without packing.

        Raises PayloadError for a block that :meth:`pack` did not make.
        """
        if list(payload) != [CODE]:
            raise PayloadError("a block is not packed")
        data = payload[CODE].tobytes()
        size = SIZE.unpack_from(data)[0] if len(data) >= SIZE.size else -1
        if not 0 <= size <= len(data) - SIZE.size:
            raise PayloadError("the bytes are of another format")
        sides = self._codec.decode(data[SIZE.size : SIZE.size + size])
        named = {
            f"{layer}:{name}": side
            for layer, pair in enumerate(sides)
            if pair is not None
            for name, side in zip("kv", pair, strict=True)
        }
        return {name: np.asarray(array)[0] for name, array in as_bits(named).items()}

    def check(self, caches: Sequence[Any], rows: Mapping[str, mx.array]) -> None:
        """Raise ModelError where the transform is not that of the model whose first rows these are."""
        leaves = {name for name, _ in cache_leaves(caches)}
        try:
            (plain,) = self.plain(rows, 0, next(iter(rows.values())).shape[2], 1 << 30)
            found = self.unpack(self.pack(plain))
        except (ValueError, KeyError, IndexError, ModelError, PayloadError) as error:
            raise ModelError(
                "the transform is not one of this model: make it with `kvlab store fit --model MODEL --out FILE`"
            ) from error
        if not {name.partition(":")[0] for name in found} <= leaves:
            raise ModelError("kvtc cannot write the caches of this model's layers: use raw or quantized")


class PackedBlockLoader:
    """Loads packed blocks into empty caches, as :class:`CacheLoader` does those with a row for each token."""

    def __init__(self, caches: Sequence[Any], tokens: int, blocks: PackedBlocks) -> None:
        self._loader, self._blocks = CacheLoader(caches, tokens), blocks
        self._problem = ""

    def take(self, payload: Payload, at: int) -> None:
        """Decode a block whose first token is at ``at``; ``at=0`` starts from the beginning."""
        if at == 0:
            self._problem = ""
        try:
            self._loader.take(self._blocks.unpack(payload), at)
        except PayloadError as error:
            self._problem = str(error)

    def targets(self, arrays: Sequence[ArrayDescription], at: int) -> None:
        """Return None: what is at rest is decoded first."""

    def nbytes(self, tokens: int) -> int:
        """Return the bytes of the decoded rows of ``tokens`` tokens."""
        return self._loader.nbytes(tokens)

    def finish(self, tokens: int, checkpoint: Payload | None) -> None:
        """Hand the rows of the first ``tokens`` to the caches, and the state of ``checkpoint`` to the other leaves.

        Raises:
            PayloadError: a block is damaged or of other caches; nothing was filled.
        """
        if self._problem:
            raise PayloadError(self._problem)
        self._loader.finish(tokens, checkpoint)
