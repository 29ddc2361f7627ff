"""What can rest of a layer cache: token rows where the cache can be cut at a token, whole state where it cannot.

A model's caches are taken apart into leaves (a ``CacheList`` holds several). A leaf is *cuttable* when its rows belong
to tokens one by one (mlx-lm's ``KVCache``, also as MLA uses it, and :class:`LayerCache`); everything else (sliding
windows, recurrent and convolutional state, chunked attention) is *stateful*: it rests as a checkpoint at one exact
token count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from kvlab.caches.layer_cache import LayerCache

Payload = Mapping[str, np.ndarray]
NONE = "none"
NUMBER = "number"
ARRAY = "array"


class ArrayDescription(Protocol):
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
