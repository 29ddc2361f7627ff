"""Turn layer caches into arrays to store: token rows where a cache can be cut at a token, whole state where it cannot.

A model's caches are taken apart into leaves (a ``CacheList`` holds several). A leaf is *cuttable* when its rows belong
to tokens one by one (mlx-lm's ``KVCache``, also as MLA uses it, and :class:`LayerCache`); everything else (sliding
windows, recurrent and convolutional state, chunked attention) is *stateful*: it is stored as a checkpoint at one exact
token count.

Every array is stored under ``<leaf>:<array>:<dtype>`` with its own MLX dtype. NumPy has no bfloat16: the bits of such
an array are stored as uint16, and its name says that they are bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from kvlab.caches.layer_cache import LayerCache

Payload = Mapping[str, np.ndarray]
NONE, NUMBER = "none", "number"
"""Kinds of stored values that are no arrays."""
DTYPES: Mapping[str, mx.Dtype] = {
    name: getattr(mx, f"{name}_" if name == "bool" else name)
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "bfloat16", "float32", "complex64",
    )
}  # fmt: skip
"""MLX dtypes by the name that a stored array carries."""
STORED_AS: Mapping[mx.Dtype, mx.Dtype] = {mx.bfloat16: mx.uint16}
"""The dtype whose bits stand for one that NumPy lacks."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ArrayDescription(Protocol):
    """Name, dtype, shape ``[n_kv_heads, tokens, width]`` and bytes of an array that is about to be read."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


class PayloadError(Exception):
    """Stored arrays do not fit these caches: another version of the cache classes wrote them."""


def cache_leaves(caches: Sequence[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name (``"3"``, or ``"3.0"`` inside a CacheList) and the cache of every leaf, in order."""
    for i, cache in enumerate(caches):
        if isinstance(cache, CacheList):
            yield from cache_leaves(cache.caches, f"{prefix}{i}.")
        else:
            yield f"{prefix}{i}", cache


def is_cuttable(cache: Any) -> bool:
    """Return whether the rows of ``cache`` belong to tokens one by one."""
    return isinstance(cache, LayerCache) or type(cache) is KVCache


def has_state(caches: Sequence[Any]) -> bool:
    """Return whether a prefix of these caches is exact only at a checkpoint."""
    return any(not is_cuttable(cache) for _, cache in cache_leaves(caches))


def own_layers(caches: Sequence[Any]) -> list[LayerCache]:
    """Return the leaves that are kvlab's own."""
    return [cache for _, cache in cache_leaves(caches) if isinstance(cache, LayerCache)]


# -- token rows -------------------------------------------------------------------------------------------------------


def token_rows(caches: Sequence[Any], *, prompt: bool = False) -> dict[str, mx.array]:
    """Return the rows ``[1, n_kv_heads, tokens, width]`` of all cuttable leaves, named ``<leaf>:<array>``.

    With ``prompt``, rows are those that scorers copied at the end of the prompt, before they evicted.
    """
    out: dict[str, mx.array] = {}
    for name, cache in cache_leaves(caches):
        if isinstance(cache, LayerCache):
            held = (
                cache.retention.prompt_rows.used()
                if prompt and cache.retention.prompt_rows is not None
                else cache.all_rows()
            )
            out |= {f"{name}:{key}": array for key, array in held.items()}
        elif type(cache) is KVCache and cache.keys is not None:
            keys, values = cache.keys_and_values()
            out |= {f"{name}:k": keys, f"{name}:v": values}
    return out


def as_bits(arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Add the dtype to the names of arrays, and return those of a dtype that NumPy lacks as the bits of another one.

    The arrays that are returned do not change when the caches go on.
    """
    return {
        f"{name}:{_NAMES[array.dtype]}": array.view(STORED_AS[array.dtype]) if array.dtype in STORED_AS else array[...]
        for name, array in arrays.items()
    }


def to_blocks(rows: Mapping[str, np.ndarray], start: int, end: int, block: int) -> list[Payload]:
    """Cut rows ``start`` to ``end`` into blocks of ``block`` tokens, arrays ``[n_kv_heads, tokens, width]``.

    The last block may be shorter. Every array is a copy of its own, so that a block that leaves memory frees its
    bytes. A model without cuttable leaves gets blocks of no bytes, which say that these tokens were seen.

    Args:
        rows: the memory of what :func:`as_bits` returns, ``[1, n_kv_heads, length, width]``.
    """
    wide = {name: array[0] for name, array in rows.items()} or {"none:seen:uint8": np.zeros((1, end, 0), np.uint8)}
    return [
        {name: array[:, at : min(at + block, end)].copy() for name, array in wide.items()}
        for at in range(start, end, block)
    ]


# -- whole state ------------------------------------------------------------------------------------------------------


def checkpoint_state(caches: Sequence[Any]) -> tuple[dict[str, mx.array], dict[str, np.ndarray]]:
    """Return the state of all stateful leaves: arrays by ``<leaf>:<path>``, and values of other kinds.

    The names of the latter end with their kind, ``number`` or ``none``.
    """
    arrays: dict[str, mx.array] = {}
    others: dict[str, np.ndarray] = {}
    for name, cache in cache_leaves(caches):
        if not is_cuttable(cache):
            for path, value in flatten(_needed(cache)):
                if value is None:
                    others[f"{name}:{path}:{NONE}"] = np.zeros(0, np.uint8)
                elif isinstance(value, mx.array):
                    arrays[f"{name}:{path}"] = value
                else:
                    others[f"{name}:{path}:{NUMBER}"] = np.array(value)
    return arrays, others


def to_checkpoint(caches: Sequence[Any]) -> Payload:
    """Return the state of all stateful leaves, without rows that no later token can see.

    Names are ``<leaf>:<path>:<kind>``: the dtype of an array, ``number``, or ``none``.
    """
    arrays, others = checkpoint_state(caches)
    return others | {name: copied(np.asarray(array)) for name, array in as_bits(arrays).items()}


def copied(array: np.ndarray) -> np.ndarray:
    """Return a contiguous copy."""
    return np.array(array, order="C", copy=True)


def _needed(cache: Any) -> Any:
    """Return the state of a leaf, cut to the rows that later tokens can see."""
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


def flatten(state: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path (``"0.1"``) and the value of everything in nested lists and tuples, in order."""
    if isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from flatten(value, f"{path}.{i}" if path else str(i))
    else:
        yield path, state


def unflatten(like: Any, values: Mapping[str, Any], path: str = "") -> Any:
    """Return nested lists and tuples of the form of ``like``, with ``values`` by the paths of :func:`flatten`."""
    if isinstance(like, list | tuple):
        parts = [unflatten(value, values, f"{path}.{i}" if path else str(i)) for i, value in enumerate(like)]
        return parts if isinstance(like, list) else tuple(parts)
    return values[path]


# -- arrays -----------------------------------------------------------------------------------------------------------


def name_parts(name: str) -> tuple[str, str, str]:
    """Split the name of a stored array into leaf, array or path, and dtype or another kind of value.

    Raises:
        PayloadError: the name has other parts.
    """
    parts = name.split(":")
    if len(parts) != 3:
        raise PayloadError(f"layer {parts[0]} has an array {name!r}, whose name gives no dtype")
    return parts[0], parts[1], parts[2]


def as_stored(array: mx.array, name: str) -> mx.array:
    """Return an array that was stored as ``name`` with the dtype that this gives.

    Raises:
        PayloadError: the name gives no dtype, or the array does not hold the bits of this one.
    """
    leaf, _, kind = name_parts(name)
    dtype = DTYPES.get(kind)
    if dtype is not None and array.dtype == STORED_AS.get(dtype, dtype):
        return array.view(dtype) if dtype in STORED_AS else array
    raise PayloadError(f"layer {leaf} has an array {name!r} that holds {array.dtype}")
