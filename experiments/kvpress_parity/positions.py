"""Kept positions as text: this needs NumPy only."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np


def pack(kept: Sequence[np.ndarray]) -> str:
    """Write bool arrays ``[n_kv_heads, tokens]``, one a layer, as packed bits, compressed, in base 85.

    The alphabet is that of RFC 1924, which has no slash and no quote.
    """
    bits = np.packbits(np.stack(kept), axis=None)
    return base64.b85encode(zlib.compress(bits.tobytes(), 9)).decode()


def unpack(text: str, layers: int, heads: int, tokens: int) -> np.ndarray:
    """Read what :func:`pack` wrote: bool ``[layers, n_kv_heads, tokens]``."""
    bits = np.unpackbits(np.frombuffer(zlib.decompress(base64.b85decode(text)), np.uint8))
    return bits[: layers * heads * tokens].reshape(layers, heads, tokens).astype(bool)
