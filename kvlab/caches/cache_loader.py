"""``CacheLoader``: loads stored KV into empty caches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches.kv_buffer import GROWTH_ROWS
from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.serialize import (
    NONE,
    NUMBER,
    ArrayDescription,
    Payload,
    PayloadError,
    as_stored,
    cache_leaves,
    flatten,
    is_cuttable,
    name_parts,
    unflatten,
)

POSITIONS = "p"
"""Name of the true positions of rows, int32 ``[1, n_kv_heads, rows, 1]``, where rows of a leaf have left."""

SPARE_TOKENS = 16
"""Tokens of free space behind the stored ones, for the first tokens that follow."""


class CacheLoader:
    """Loads stored rows into empty caches, block by block as they are read; every row is copied once.

    Args:
        tokens: the most tokens that will be stored in the caches.
    """

    def __init__(self, caches: Sequence[Any], tokens: int) -> None:
        self._leaves = list(cache_leaves(caches))
        self._capacity = math.ceil((tokens + SPARE_TOKENS) / GROWTH_ROWS) * GROWTH_ROWS
        self._arrays: dict[str, mx.array] = {}
        self._views: dict[str, np.ndarray] = {}
        self._head_views: list[memoryview] = []
        self._layout: Sequence[ArrayDescription] | None = None
        self._problem = ""

    def take(self, payload: Payload, at: int) -> None:
        """Copy the arrays ``[n_kv_heads, n, width]`` of the tokens from ``at`` on; ``at=0`` starts from the beginning.

        Payloads that do not fit together are noted, and refused by :meth:`finish`.
        """
        if not self._arrays:
            self._allocate(payload)
        if at == 0:
            self._problem = ""
        if payload.keys() != self._views.keys():
            self._problem = "the blocks have different arrays"
            return
        for name, array in payload.items():
            target = self._views[name][:, at : at + array.shape[1]]
            if (target.dtype, target.shape) != (array.dtype, array.shape):
                self._problem = f"the blocks of layer {name.partition(':')[0]} do not fit together"
                return
            target[...] = array

    def targets(self, arrays: Sequence[ArrayDescription], at: int) -> list[memoryview] | None:
        """Return memory for the arrays of the block that is read next, head by head; None where it does not fit.

        Describing the next block by the same object says that it has the same layout.
        """
        if not self._arrays:
            self._allocate({array.name: np.empty(array.shape, array.dtype) for array in arrays})
        if at == 0:
            self._problem = ""
        if arrays is not self._layout:
            if not self._fits(arrays):
                return None
            self._layout = arrays
        end = at + arrays[0].shape[1]
        return [head[at:end] for head in self._head_views] if end <= self._capacity else None

    def _fits(self, arrays: Sequence[ArrayDescription]) -> bool:
        """Return whether a block of this layout fits, and note where its rows go."""
        if [array.name for array in arrays] != list(self._views):
            return False
        for array in arrays:
            target, (heads, *_, width) = self._views[array.name], array.shape
            found = (target.dtype, target.ndim, target.shape[0], target.shape[2])
            if found != (array.dtype, len(array.shape), heads, width):
                return False
        # Rows of bytes: a slice of them is what a reader fills.
        self._head_views = [head.view(np.uint8).data for target in self._views.values() for head in target]
        return True

    def nbytes(self, tokens: int) -> int:
        """Return the bytes of ``tokens`` rows of all arrays."""
        return tokens * sum(array.nbytes for array in self._arrays.values()) // self._capacity

    def finish(self, tokens: int, checkpoint: Payload | None, length: int | None = None) -> None:
        """Hand the rows of the first ``tokens`` to the cuttable leaves, and the state of ``checkpoint`` to the others.

        Args:
            length: rows of these tokens that there are, behind those of prefixes; None: one for each.

        Raises:
            PayloadError: these payloads are of other caches; nothing was filled.
        """
        if self._problem:
            raise PayloadError(self._problem)
        self._views.clear()
        self._head_views.clear()
        self._layout = None
        known = {name for name, _ in self._leaves}
        rows = {leaf: arrays for leaf, arrays in _rows_by_leaf(self._arrays).items() if leaf in known}
        positions = {leaf: arrays.pop(POSITIONS) for leaf, arrays in rows.items() if POSITIONS in arrays}
        filled = [
            _rows_of(name, rows) if is_cuttable(cache) else _state_of(name, cache, checkpoint or {})
            for name, cache in self._leaves
        ]
        for (name, cache), content in zip(self._leaves, filled, strict=True):
            if is_cuttable(cache) and not content:
                continue
            if isinstance(cache, LayerCache) and cache.offset and length is None:
                cache.restore({key: array[:, :, :tokens] for key, array in content.items()})
            elif isinstance(cache, LayerCache):
                cache.begin_with_rows(content, tokens, length)
                if name in positions:
                    cache.retention.begin_with(positions[name][:, :, :length, 0])
            elif is_cuttable(cache):
                cache.keys, cache.values, cache.offset = content["k"], content["v"], tokens
            else:
                cache.state = content

    def _allocate(self, payload: Payload) -> None:
        self._arrays = {
            name: mx.empty((1, array.shape[0], self._capacity, *array.shape[2:]), getattr(mx, array.dtype.name))
            for name, array in payload.items()
        }
        mx.eval(self._arrays)
        self._views = {name: np.asarray(array)[0] for name, array in self._arrays.items()}


def _rows_by_leaf(arrays: Mapping[str, mx.array]) -> dict[str, dict[str, mx.array]]:
    """Group arrays by leaf and then by their own name, each in its own dtype."""
    rows: dict[str, dict[str, mx.array]] = {}
    for name, array in arrays.items():
        leaf, kind, _ = name_parts(name)
        rows.setdefault(leaf, {})[kind] = as_stored(array, name)
    return rows


def _rows_of(leaf: str, rows: Mapping[str, dict[str, mx.array]]) -> dict[str, mx.array]:
    """Return the rows of one leaf; none where only others have some, because its model never uses it.

    Raises PayloadError where keys or values are missing.
    """
    found = rows.get(leaf, {})
    if rows and not found:
        return {}
    if {kind[0] for kind in found} != {"k", "v"}:
        raise PayloadError(f"layer {leaf} is not in these blocks")
    return found


def _state_of(leaf: str, cache: Any, payload: Payload) -> Any:
    """Return the state of one leaf, in the form that ``cache`` takes. Raises PayloadError where a part is missing."""
    values: dict[str, Any] = {}
    for name, array in payload.items():
        owner, path, kind = name_parts(name)
        if owner == leaf:
            if kind == NONE:
                values[path] = None
            else:
                values[path] = array.item() if kind == NUMBER else as_stored(mx.array(array), name)
    if values.keys() != {path for path, _ in flatten(cache.state)}:
        raise PayloadError(f"layer {leaf} is not in this checkpoint")
    return unflatten(cache.state, values)
