"""Live KV: the layer caches that a policy builds, the attention hook, and what of them can rest."""

from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.build import can_share, check_model, make_caches, own_caches, stages
from kvlab.caches.layer import Eviction, LayerCache
from kvlab.caches.rows import Rows
from kvlab.caches.unbatched import batchable

__all__ = [
    "BatchLayerCache", "Eviction", "LayerCache", "Rows", "batchable", "can_share", "check_model",
    "make_caches", "own_caches", "stages",
]  # fmt: skip
