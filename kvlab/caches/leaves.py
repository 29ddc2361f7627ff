"""What can rest of a layer cache: token rows where the cache can be cut at a token, whole state where it cannot.

A model's caches are taken apart into leaves (a ``CacheList`` holds several). A leaf is *cuttable* when its rows belong
to tokens one by one (mlx-lm's ``KVCache``, also as MLA uses it, and :class:`LayerCache`); everything else (sliding
windows, recurrent and convolutional state, chunked attention) is *stateful*: it rests as a checkpoint at one exact
token count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import CacheList, KVCache

from kvlab.caches.layer import LayerCache
from kvlab.caches.rows import STEP

Payload = Mapping[str, np.ndarray]
NONE = "none"
NUMBER = "number"
ARRAY = "array"


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
            rows = cache.prompt_rows if prompt and cache.prompt_rows is not None else cache.rows
            out |= {f"{name}:{key}": array for key, array in rows.used().items()}
        elif type(cache) is KVCache and cache.keys is not None:
            keys, values = cache.keys_and_values()
            out |= {f"{name}:k": keys, f"{name}:v": values}
    return out


def to_blocks(rows: Mapping[str, mx.array], start: int, end: int, block: int) -> list[Payload]:
    """Rows ``start`` to ``end`` as blocks of ``block`` tokens, arrays ``[n_kv_heads, tokens, width]``.

    The last block may be shorter. Every array is a copy of its own, so that a block that leaves memory frees its
    bytes. A model without cuttable leaves gets blocks of no bytes, which say that these tokens were seen.
    """
    wide = {name: as_numpy(array[0, :, start:end]) for name, array in rows.items()}
    wide = wide or {"none:seen": np.zeros((1, end - start, 0), np.uint8)}
    return [
        {name: np.ascontiguousarray(array[:, at : at + block]) for name, array in wide.items()}
        for at in range(0, end - start, block)
    ]


def restore_rows(caches: Sequence[Any], blocks: Sequence[Payload], dtype: mx.Dtype) -> None:
    """Fill the empty cuttable leaves with the rows of ``blocks``, in order."""
    for name, cache in leaves(caches):
        if not is_cuttable(cache):
            continue
        rows = {
            key.split(":", 1)[1]: as_mlx(np.concatenate([block[key] for block in blocks], axis=1), dtype)[None]
            for key in blocks[0]
            if key.split(":", 1)[0] == name
        }
        if isinstance(cache, LayerCache):
            cache.restore(rows)
        else:
            # Room to grow, so that the first new tokens do not copy the prefix again.
            padding = [(0, 0), (0, 0), (0, STEP), (0, 0)]
            cache.offset = rows["k"].shape[2]
            cache.keys, cache.values = mx.pad(rows["k"], padding), mx.pad(rows["v"], padding)


# -- whole state ------------------------------------------------------------------------------------------------------


def to_checkpoint(caches: Sequence[Any]) -> Payload:
    """The state of all stateful leaves, named ``<leaf>:<path>:<kind>``."""
    out: dict[str, np.ndarray] = {}
    for name, cache in leaves(caches):
        if not is_cuttable(cache):
            for path, value in _flatten(cache.state):
                if value is None:
                    out[f"{name}:{path}:{NONE}"] = np.zeros(0, np.uint8)
                elif isinstance(value, mx.array):
                    out[f"{name}:{path}:{ARRAY}"] = as_numpy(value)
                else:
                    out[f"{name}:{path}:{NUMBER}"] = np.array(value)
    return out


def restore_checkpoint(caches: Sequence[Any], payload: Payload, dtype: mx.Dtype) -> None:
    """Give the stateful leaves the state of ``payload``."""
    for name, cache in leaves(caches):
        if not is_cuttable(cache):
            values = {}
            for key, array in payload.items():
                leaf, path, kind = key.split(":")
                if leaf == name:
                    values[path] = None if kind == NONE else array.item() if kind == NUMBER else as_mlx(array, dtype)
            cache.state = _unflatten(cache.state, values)


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


# -- arrays -----------------------------------------------------------------------------------------------------------


def as_numpy(array: mx.array) -> np.ndarray:
    """A NumPy copy; bfloat16, which NumPy lacks, as its bits in uint16."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def as_mlx(array: np.ndarray, dtype: mx.Dtype) -> mx.array:
    """An MLX copy; uint16 is taken for bfloat16 bits where that is the model's dtype."""
    out = mx.array(array)
    return out.view(mx.bfloat16) if dtype == mx.bfloat16 and out.dtype == mx.uint16 else out
