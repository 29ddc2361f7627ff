"""Live KV: the layer caches of a policy, the attention hook, and how caches become arrays to store."""

from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.factory import can_share, check_model, layerwise_model, make_caches, own_caches
from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.retention import Eviction, LayerPlace
from kvlab.caches.sequential import batchable

__all__ = [
    "BatchLayerCache", "Eviction", "KVBuffer", "LayerCache", "LayerPlace", "batchable", "can_share", "check_model",
    "make_caches", "own_caches", "layerwise_model",
]  # fmt: skip
