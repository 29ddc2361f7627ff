"""``observed_caches``: caches that lose nothing and show the queries of each layer, for studies and calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, KVCache

from kvlab.caches.attention_hook import install
from kvlab.caches.factory import native_caches
from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.retention import LayerPlace
from kvlab.policies import Policy

Observer = Callable[[LayerCache, mx.array, float], None]
"""Called behind each attention with the layer's cache, the newest queries ``[1, n_heads, n, head_dim]`` and the scale.

``cache.place.layer`` is the layer's index; ``cache.rows.decode()`` gives keys and values of all tokens so far.
"""


class ObservedLayer(LayerCache):
    """A layer cache that keeps all rows and shows its queries to an observer."""

    def __init__(self, place: LayerPlace, observer: Observer) -> None:
        super().__init__(Policy(), place)
        self._observer = observer

    def attend(self, queries: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None) -> mx.array:
        """Compute attention as every layer cache does, then call the observer."""
        out = super().attend(queries, scale=scale, mask=mask, sinks=sinks)
        self._observer(self, queries, scale)
        return out


def observed_caches(model: nn.Module, observer: Observer) -> list[Any]:
    """Return empty caches for one sequence, one a layer; every plain KV cache among them calls ``observer``.

    Layers with a sliding window or recurrent state keep mlx-lm's own caches, and are not observed.
    """
    install(model)
    native = native_caches(model)

    def replace(cache: Any, layer: int) -> Any:
        if isinstance(cache, CacheList):
            return CacheList(*(replace(inner, layer) for inner in cache.caches))
        return ObservedLayer(LayerPlace(layer, len(native)), observer) if type(cache) is KVCache else cache

    return [replace(cache, layer) for layer, cache in enumerate(native)]
