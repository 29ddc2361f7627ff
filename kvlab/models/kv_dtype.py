"""The dtype that a model computes its KV in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def kv_dtype(model: nn.Module) -> str:
    """The dtype of the keys that the model's own caches hold after two tokens; of any state where it has no keys.

    Weights do not tell: a 4-bit model with a large float32 head still computes its KV in 16 bits. Where a forward pass
    is not possible on this device, the first floating-point parameter decides, which is the embedding's.
    """
    from mlx_lm.models.cache import make_prompt_cache

    try:
        caches = make_prompt_cache(model)
        model(mx.array([[0, 0]]), cache=caches)
        found = [*_dtypes(_keys(caches)), *_dtypes(cache.state for cache in caches)]
    except (ValueError, RuntimeError, TypeError):  # some experts in 16 bits have no kernel on CPUs
        found = []
    return next(iter(found or _dtypes(model.parameters())), "float32")


def _keys(caches: Any) -> Iterator[Any]:
    for cache in caches:
        yield from _keys(getattr(cache, "caches", ()))  # a list of caches for one layer
        if getattr(cache, "keys", None) is not None:
            yield cache.keys


def _dtypes(tree: Any) -> list[str]:
    """The floating-point dtypes of a tree of arrays, in order."""
    arrays: Any = tree_flatten(list(tree) if isinstance(tree, Iterator) else tree)
    names = (str(array.dtype).removeprefix("mlx.core.") for _, array in arrays if isinstance(array, mx.array))
    return [name for name in names if name in DTYPES]
