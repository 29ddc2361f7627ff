"""From a policy's codec module to the codec."""

from __future__ import annotations

from kvlab.caches.codecs.base import Codec
from kvlab.caches.codecs.quantized import QuantizedCodec
from kvlab.caches.codecs.raw import RawCodec
from kvlab.policies import Module, Quantized


def make_codec(module: Module) -> Codec:
    """The codec that a policy's module asks for."""
    return QuantizedCodec(module.bits, module.group) if isinstance(module, Quantized) else RawCodec()
