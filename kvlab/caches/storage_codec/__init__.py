"""A codec for KV at rest: transform, quantization and entropy coding, in the manner of KVTC. Nothing attends to it."""

from kvlab.caches.storage_codec.codec import StorageCodec
from kvlab.caches.storage_codec.fitting import fitted
from kvlab.caches.storage_codec.samples import KVSamples
from kvlab.caches.storage_codec.transform import KVTransform

__all__ = ["KVSamples", "KVTransform", "StorageCodec", "fitted"]
