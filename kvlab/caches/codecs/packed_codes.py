"""Whole numbers of a few bits, packed into words without gaps, and read back through tables of their values.

The code of channel i is in the bits ``i * bits`` to ``(i + 1) * bits`` of a row, counted from the lowest one of its
first 32-bit word: the order of ``mx.quantize``. Bytes of a row follow in that order on little-endian machines, which
all that MLX runs on are.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

WORD_BITS = 32
BYTE_BITS = 8


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes ``[..., n]`` below 2^bits into uint32 ``[..., n * bits / 32]``; n is a multiple of 32."""
    each = (codes.astype(mx.uint32)[..., None] >> mx.arange(bits, dtype=mx.uint32)) & 1
    words = each.reshape(*codes.shape[:-1], -1, WORD_BITS) << mx.arange(WORD_BITS, dtype=mx.uint32)
    return words.sum(axis=-1)


def byte_table(values: np.ndarray, bits: int) -> np.ndarray:
    """Return the values of the codes in each byte, ``[256, 8 / bits]``; ``values`` are those of the 2^bits codes."""
    shifts = np.arange(0, BYTE_BITS, bits)
    return values[(np.arange(1 << BYTE_BITS)[:, None] >> shifts) & ((1 << bits) - 1)]


def look_up(packed: mx.array, table: mx.array) -> mx.array:
    """Return the values ``[..., n]`` of packed codes ``[..., n * bits / 32]``, by the table of :func:`byte_table`."""
    return mx.take(table, packed.view(mx.uint8), axis=0).reshape(*packed.shape[:-1], -1)
