"""A codec for KV at rest: transform, quantization and entropy coding, in the manner of KVTC. Nothing attends to it."""

from kvlab.caches.storage_codec.calibration import calibrated
from kvlab.caches.storage_codec.codec import StorageCodec
from kvlab.caches.storage_codec.transform import KVTransform

__all__ = ["KVTransform", "StorageCodec", "calibrated"]
