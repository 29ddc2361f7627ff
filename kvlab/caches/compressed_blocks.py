"""Rows of blocks that keep fewer rows than tokens, in the form of blocks at rest.

A block at rest has a row for each of its tokens in every array. Here the bytes of the rows that stayed are dealt out
evenly over the tokens, head by head, and filled up with zeros; the name of an array tells its rows and their width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches.cache_loader import POSITIONS, CacheLoader
from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.serialize import ArrayDescription, Payload, PayloadError, cache_leaves


def compressed_rows(caches: Sequence[Any]) -> dict[str, mx.array]:
    """Return the rows of complete blocks of all leaves, and their positions, named as ``serialize.token_rows`` does.

    Arrays are ``[1, n_kv_heads, rows, width]``; empty before the first complete block.
    """
    out: dict[str, mx.array] = {}
    for name, cache in cache_leaves(caches):
        if isinstance(cache, LayerCache) and (kept := cache.kept_positions()) is not None:
            rows = cache.all_rows()
            out |= {f"{name}:{key}": array[:, :, : kept.shape[2]] for key, array in rows.items()}
            out[f"{name}:{POSITIONS}"] = kept[..., None]
    return out


def to_compressed_blocks(
    rows: Mapping[str, np.ndarray], start: int, end: int, block: int, block_rows: int
) -> list[Payload]:
    """Return the blocks of the tokens ``start`` to ``end``, multiples of ``block``; arrays are copies of their own.

    Args:
        rows: the memory of what ``serialize.as_bits`` returns for :func:`compressed_rows`.
    """
    blocks = range(start // block, end // block)
    return [
        {
            _packed_name(name, array, block_rows): _packed(array[0, :, i * block_rows : (i + 1) * block_rows], block)
            for name, array in rows.items()
        }
        for i in blocks
    ]


def _packed_name(name: str, array: np.ndarray, block_rows: int) -> str:
    return f"{name}:{block_rows}x{array.shape[3]}:{array.dtype.name}"


def _packed(rows: np.ndarray, block: int) -> np.ndarray:
    """Deal the bytes of ``[heads, rows, width]`` out over ``block`` tokens: uint8 ``[heads, block, n]``."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    each = math.ceil(flat.shape[1] / block)
    out = np.zeros((len(rows), block * each), np.uint8)
    out[:, : flat.shape[1]] = flat
    return out.reshape(len(rows), block, each)


def unpacked(payload: Payload) -> dict[str, np.ndarray]:
    """Return the arrays ``[heads, rows, width]`` of a block, named as before :func:`to_compressed_blocks`.

    Raises PayloadError for arrays that this module did not make.
    """
    out = {}
    for packed_name, array in payload.items():
        name, _, form = packed_name.rpartition(":")
        name, _, size = name.rpartition(":")
        try:
            rows, width = map(int, size.split("x"))
            dtype = np.dtype(form)
            flat = np.ascontiguousarray(array).reshape(len(array), -1)[:, : rows * width * dtype.itemsize]
            out[name] = flat.view(dtype).reshape(len(array), rows, width)
        except (TypeError, ValueError) as error:
            raise PayloadError(f"a block has an array {packed_name!r}, which is no compressed rows") from error
    return out


class CompressedBlockLoader:
    """Loads compressed blocks into caches, as :class:`CacheLoader` does those with a row for each token.

    Args:
        tokens: the most tokens that will be stored in the caches.
        held: tokens with which the caches begin already, in prefixes that they share: whole blocks.
    """

    def __init__(self, caches: Sequence[Any], tokens: int, block: int, block_rows: int, held: int = 0) -> None:
        self._caches = caches
        self._block, self._block_rows, self._held = block, block_rows, held
        self._loader = CacheLoader(caches, self._rows(tokens))
        self._problem = ""

    def take(self, payload: Payload, at: int) -> None:
        """Copy the rows of the block whose first token is at ``at``; ``at=0`` starts from the beginning."""
        if at == 0:
            self._problem = ""
        if at < self._held:
            return
        try:
            self._loader.take(unpacked(payload), self._rows(at))
        except PayloadError as error:
            self._problem = str(error)

    def targets(self, arrays: Sequence[ArrayDescription], at: int) -> None:
        """Return None: bytes at rest are in another order than rows in memory."""

    def nbytes(self, tokens: int) -> int:
        """Return the bytes of the rows of ``tokens`` tokens, without those that the caches held already."""
        return self._loader.nbytes(self._rows(tokens))

    def finish(self, tokens: int, checkpoint: Payload | None) -> None:
        """Hand the rows of the first ``tokens`` to the caches, and the state of ``checkpoint`` to the other leaves.

        Raises:
            PayloadError: these payloads are of other caches; nothing was filled.
        """
        if self._problem:
            raise PayloadError(self._problem)
        self._loader.finish(tokens, checkpoint, self._rows(tokens))

    def _rows(self, tokens: int) -> int:
        return (tokens - self._held) // self._block * self._block_rows
