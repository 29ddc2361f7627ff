"""Live KV: the layer caches of a policy, the attention hook, and how caches become arrays to store."""

from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.batching_trial import Batching
from kvlab.caches.factory import batching, can_share, check_model, layerwise_model, make_caches, own_caches
from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.retention import Eviction, LayerPlace
from kvlab.caches.sequential import SequentialModel
from kvlab.caches.trial_results import forget_results_of_another

__all__ = [
    "BatchLayerCache", "Batching", "Eviction", "KVBuffer", "LayerCache", "LayerPlace", "SequentialModel", "batching",
    "can_share", "check_model", "forget_results_of_another", "layerwise_model", "make_caches", "own_caches",
]  # fmt: skip
