"""Stored KV back into empty caches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches.kv_buffer import GROWTH_ROWS, KVBuffer
from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.serialize import (
    NONE,
    NUMBER,
    ArrayDescription,
    Payload,
    PayloadError,
    _flatten,
    _unflatten,
    as_mlx,
    is_cuttable,
    leaves,
    view,
)

ROOM = 16
"""Rows behind the stored ones, for the first tokens that follow."""


class CacheLoader:
    """Fills empty caches with stored rows, block by block as they are read, each copied once.

    Args:
        tokens: the most that will come. dtype: the model's.
    """

    def __init__(self, caches: Sequence[Any], tokens: int, dtype: mx.Dtype) -> None:
        self._leaves = list(leaves(caches))
        self._capacity = math.ceil((tokens + ROOM) / GROWTH_ROWS) * GROWTH_ROWS
        self._dtype = dtype
        self._arrays: dict[str, mx.array] = {}
        self._views: dict[str, np.ndarray] = {}
        self._heads: list[memoryview] = []
        self._form: Sequence[ArrayDescription] | None = None
        self._wrong = ""

    def take(self, payload: Payload, at: int) -> None:
        """Copy the arrays ``[n_kv_heads, n, width]`` of the tokens from ``at`` on; 0 comes first, and starts anew.

        Payloads that do not go together are noted, and refused by :meth:`finish`.
        """
        if not self._arrays:
            self._make_room(payload)
        if at == 0:
            self._wrong = ""
        if payload.keys() != self._views.keys():
            self._wrong = "the blocks have different arrays"
            return
        for name, array in payload.items():
            room = self._views[name][:, at : at + array.shape[1]]
            if (room.dtype, room.shape) != (array.dtype, array.shape):
                self._wrong = f"the blocks of layer {name.partition(':')[0]} do not go together"
                return
            room[...] = array

    def rooms(self, arrays: Sequence[ArrayDescription], at: int) -> list[memoryview] | None:
        """Bytes for the arrays of a block that is read next, head by head; None for one that does not go here.

        Describing the next block by the same object says that it is of the same form.
        """
        if not self._arrays:
            self._make_room({array.name: np.empty(array.shape, array.dtype) for array in arrays})
        if at == 0:
            self._wrong = ""
        if arrays is not self._form:
            if not self._fits(arrays):
                return None
            self._form = arrays
        end = at + arrays[0].shape[1]
        return [head[at:end] for head in self._heads] if end <= self._capacity else None

    def _fits(self, arrays: Sequence[ArrayDescription]) -> bool:
        """Whether a block of this form goes here; notes where its rows go."""
        if [array.name for array in arrays] != list(self._views):
            return False
        for array in arrays:
            room, (heads, *_, width) = self._views[array.name], array.shape
            if (room.dtype, room.ndim, room.shape[0], room.shape[2]) != (array.dtype, len(array.shape), heads, width):
                return False
        # Rows of bytes: a slice of them is what a reader fills.
        self._heads = [head.view(np.uint8).data for room in self._views.values() for head in room]
        return True

    def nbytes(self, tokens: int) -> int:
        """Bytes of ``tokens`` rows of all arrays."""
        return tokens * sum(array.nbytes for array in self._arrays.values()) // self._capacity

    def finish(self, tokens: int, checkpoint: Payload | None) -> None:
        """Hand the first ``tokens`` rows to the cuttable leaves, and the state of ``checkpoint`` to the others.

        Raises:
            PayloadError: these payloads are of other caches; nothing was filled.
        """
        if self._wrong:
            raise PayloadError(self._wrong)
        self._views.clear()
        self._heads.clear()
        self._form = None
        filled = [
            self._rows_of(name) if is_cuttable(cache) else _state_of(name, cache, checkpoint or {}, self._dtype)
            for name, cache in self._leaves
        ]
        for (_, cache), content in zip(self._leaves, filled, strict=True):
            if isinstance(cache, LayerCache) and cache.offset:
                cache.restore({key: array[:, :, :tokens] for key, array in content.items()})
            elif isinstance(cache, LayerCache):
                cache.rows, cache.offset = KVBuffer(cache.codec, content), tokens
                cache.rows.length = tokens
            elif is_cuttable(cache):
                cache.keys, cache.values, cache.offset = content["k"], content["v"], tokens
            else:
                cache.state = content

    def _make_room(self, payload: Payload) -> None:
        self._arrays = {
            name: mx.empty((1, array.shape[0], self._capacity, *array.shape[2:]), getattr(mx, array.dtype.name))
            for name, array in payload.items()
        }
        mx.eval(self._arrays)
        self._views = {name: view(array)[0] for name, array in self._arrays.items()}

    def _rows_of(self, leaf: str) -> dict[str, mx.array]:
        rows: dict[str, mx.array] = {}
        for key, array in self._arrays.items():
            name, _, kind = key.partition(":")
            if name == leaf:
                is_bits = (array.dtype, self._dtype) == (mx.uint16, mx.bfloat16)
                rows[kind] = array.view(mx.bfloat16) if is_bits else array
        if {kind[0] for kind in rows} != {"k", "v"}:
            raise PayloadError(f"layer {leaf} is not in these blocks")
        return rows


def _state_of(leaf: str, cache: Any, payload: Payload, dtype: mx.Dtype) -> Any:
    values = {}
    for key, array in payload.items():
        name, path, kind = key.split(":")
        if name == leaf:
            values[path] = None if kind == NONE else array.item() if kind == NUMBER else as_mlx(array, dtype)
    if values.keys() != {path for path, _ in _flatten(cache.state)}:
        raise PayloadError(f"layer {leaf} is not in this checkpoint")
    return _unflatten(cache.state, values)
