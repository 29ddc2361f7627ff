"""Live KV: the layer caches that a policy builds, the attention hook, and what of them can rest."""

from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.build import check_model, make_caches
from kvlab.caches.layer import Eviction, LayerCache
from kvlab.caches.rows import QuantizedRows, RawRows, Rows

__all__ = [
    "BatchLayerCache", "Eviction", "LayerCache", "QuantizedRows", "RawRows", "Rows", "check_model", "make_caches",
]  # fmt: skip
