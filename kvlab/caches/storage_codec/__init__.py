"""A codec for KV at rest: transform, quantization and entropy coding, in the manner of KVTC. Nothing attends to it."""

from kvlab.caches.storage_codec.codec import PlainRows, StorageCodec
from kvlab.caches.storage_codec.fitting import fitted
from kvlab.caches.storage_codec.of_text import transform_of_text
from kvlab.caches.storage_codec.samples import KVSamples
from kvlab.caches.storage_codec.transform import KVTransform

__all__ = ["KVSamples", "KVTransform", "PlainRows", "StorageCodec", "fitted", "transform_of_text"]
