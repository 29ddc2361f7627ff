"""Codecs of live caches: how K and V are written into arrays, and how attention reads them."""

from kvlab.caches.codecs.base import Arrays, Codec, EncodedRows
from kvlab.caches.codecs.registry import make_codec

__all__ = ["Arrays", "Codec", "EncodedRows", "make_codec"]
