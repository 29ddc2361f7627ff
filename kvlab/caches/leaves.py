"""What can rest of a layer cache: token rows where the cache can be cut at a token, whole state where it cannot.

A model's caches are taken apart into leaves (a ``CacheList`` holds several). A leaf is *cuttable* when its rows belong
to tokens one by one (mlx-lm's ``KVCache``, also as MLA uses it, and :class:`LayerCache`); everything else (sliding
windows, recurrent and convolutional state, chunked attention) is *stateful*: it rests as a checkpoint at one exact
token count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from kvlab.caches.layer import LayerCache
from kvlab.caches.rows import STEP, Rows

Payload = Mapping[str, np.ndarray]
NONE = "none"
NUMBER = "number"
ARRAY = "array"


class Described(Protocol):
    """An array that is about to be read."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


class PayloadError(Exception):
    """What was stored does not fit these caches: another version of the cache classes wrote it."""


def leaves(caches: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names (``"3"``, ``"3.0"`` inside a CacheList) and caches, in order."""
    for i, cache in enumerate(caches):
        if isinstance(cache, CacheList):
            yield from leaves(cache.caches, f"{prefix}{i}.")
        else:
            yield f"{prefix}{i}", cache


def is_cuttable(cache: Any) -> bool:
    """True when the rows of ``cache`` belong to tokens one by one."""
    return isinstance(cache, LayerCache) or type(cache) is KVCache


def has_state(caches: Sequence[Any]) -> bool:
    """True when a prefix of these caches is only exact at a checkpoint."""
    return any(not is_cuttable(cache) for _, cache in leaves(caches))


def own_layers(caches: Sequence[Any]) -> list[LayerCache]:
    """The leaves that are kvlab's own."""
    return [cache for _, cache in leaves(caches) if isinstance(cache, LayerCache)]


# -- token rows -------------------------------------------------------------------------------------------------------


def token_rows(caches: Sequence[Any], *, prompt: bool = False) -> dict[str, mx.array]:
    """The rows ``[1, n_kv_heads, tokens, width]`` of all cuttable leaves, named ``<leaf>:<array>``.

    ``prompt``: the rows that scorers set aside at the end of the prompt, before they evicted.
    """
    out: dict[str, mx.array] = {}
    for name, cache in leaves(caches):
        if isinstance(cache, LayerCache):
            held = cache.prompt_rows.used() if prompt and cache.prompt_rows is not None else cache.all_rows()
            out |= {f"{name}:{key}": array for key, array in held.items()}
        elif type(cache) is KVCache and cache.keys is not None:
            keys, values = cache.keys_and_values()
            out |= {f"{name}:k": keys, f"{name}:v": values}
    return out


def to_blocks(rows: Mapping[str, mx.array], start: int, end: int, block: int) -> list[Payload]:
    """Rows ``start`` to ``end`` as blocks of ``block`` tokens, arrays ``[n_kv_heads, tokens, width]``.

    The last block may be shorter. Every array is a copy of its own, so that a block that leaves memory frees its
    bytes. A model without cuttable leaves gets blocks of no bytes, which say that these tokens were seen.
    """
    wide = {name: view(array)[0] for name, array in rows.items()}
    wide = wide or {"none:seen": np.zeros((1, end, 0), np.uint8)}
    return [
        {name: array[:, at : min(at + block, end)].copy() for name, array in wide.items()}
        for at in range(start, end, block)
    ]


# -- whole state ------------------------------------------------------------------------------------------------------


def to_checkpoint(caches: Sequence[Any]) -> Payload:
    """The state of all stateful leaves, named ``<leaf>:<path>:<kind>``, without rows that nothing will read again."""
    out: dict[str, np.ndarray] = {}
    for name, cache in leaves(caches):
        if not is_cuttable(cache):
            for path, value in _flatten(_needed(cache)):
                if value is None:
                    out[f"{name}:{path}:{NONE}"] = np.zeros(0, np.uint8)
                elif isinstance(value, mx.array):
                    out[f"{name}:{path}:{ARRAY}"] = as_numpy(value)
                else:
                    out[f"{name}:{path}:{NUMBER}"] = np.array(value)
    return out


def _needed(cache: Any) -> Any:
    """The state of a leaf, cut to the rows that later tokens can see."""
    if isinstance(cache, RotatingKVCache) and cache.keys is not None and not cache.keep:
        # A batch holds up to a prefill step more than the window, and storage that is not used yet.
        rows = min(cache.offset, cache.max_size)
        keys, values = (cache._temporal_order(array)[..., -rows:, :] for array in (cache.keys, cache.values))
        return keys, values, cache.offset, cache.keep, cache.max_size, rows
    if isinstance(cache, ChunkedKVCache) and cache.keys is not None:
        # Attention never reaches back over the border of a chunk.
        start = max(cache.start_position, cache.offset // cache.chunk_size * cache.chunk_size)
        keys, values = (array[..., start - cache.start_position :, :] for array in cache.keys_and_values())
        return keys, values, cache.offset, cache.chunk_size, start
    return cache.state


def _flatten(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from _flatten(value, f"{path}.{i}" if path else str(i))
    else:
        yield path, state


def _unflatten(like: Any, values: Mapping[str, Any], path: str = "") -> Any:
    if isinstance(like, list | tuple):
        parts = [_unflatten(value, values, f"{path}.{i}" if path else str(i)) for i, value in enumerate(like)]
        return parts if isinstance(like, list) else tuple(parts)
    return values[path]


# -- and back ---------------------------------------------------------------------------------------------------------


ROOM = 16
"""Rows behind the stored ones, for the first tokens that follow."""


class Filler:
    """Fills empty caches with stored rows, block by block as they are read, each copied once.

    Args:
        tokens: the most that will come. dtype: the model's.
    """

    def __init__(self, caches: Sequence[Any], tokens: int, dtype: mx.Dtype) -> None:
        self._leaves = list(leaves(caches))
        self._capacity = math.ceil((tokens + ROOM) / STEP) * STEP
        self._dtype = dtype
        self._arrays: dict[str, mx.array] = {}
        self._views: dict[str, np.ndarray] = {}
        self._heads: list[memoryview] = []
        self._form: Sequence[Described] | None = None
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

    def rooms(self, arrays: Sequence[Described], at: int) -> list[memoryview] | None:
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

    def _fits(self, arrays: Sequence[Described]) -> bool:
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
                cache.rows, cache.offset = Rows(cache.codec, content), tokens
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


# -- arrays -----------------------------------------------------------------------------------------------------------


def view(array: mx.array) -> np.ndarray:
    """The array's own memory; bfloat16, which NumPy lacks, as its bits in uint16."""
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def as_numpy(array: mx.array) -> np.ndarray:
    """A contiguous copy of :func:`view`."""
    return np.array(view(array), order="C", copy=True)


def as_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """An MLX copy; uint16 is taken for bfloat16 bits where that is the model's dtype."""
    out = mx.array(array)
    return out.view(mx.bfloat16) if dtype == mx.bfloat16 and out.dtype == mx.uint16 else out
