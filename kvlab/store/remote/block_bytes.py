"""A block as bytes in memory: the content of a file of the SSD tier, verified in the same way."""

from __future__ import annotations

import numpy as np

from kvlab.store.blocks import Block
from kvlab.store.ssd import blockfile
from kvlab.store.ssd.blockfile import HEADER_OFFSET, BadBlock, NewerFormat

__all__ = ["BadBlock", "NewerFormat", "decode", "encode"]


def encode(block: Block) -> bytes:
    """Return the bytes of a block. Raises ``BadBlock`` for arrays that cannot be stored."""
    return b"".join(blockfile.encode(block))


def decode(data: bytes | memoryview, key: bytes | None = None) -> Block:
    """Return the block in ``data``, with both checksums verified, and its key recomputed from parent and tokens.

    Without ``key`` it may be any block. The arrays lie in ``data`` and cannot be written to. Raises ``BadBlock``.
    """
    start = bytes(data[:HEADER_OFFSET])
    length, _ = blockfile._check_size(start, len(data))
    start = bytes(data[: HEADER_OFFSET + length])
    raw, digest = blockfile._verified_header(start, length)
    payload = memoryview(data)[HEADER_OFFSET + length :]
    blockfile._verify([payload], digest)
    header = blockfile._parsed(raw)
    if key is None:
        try:
            key = bytes.fromhex(header["key"])
        except (KeyError, TypeError, ValueError):
            raise BadBlock("its header names no key") from None
    # NumPy wants arrays at addresses that are a multiple of 64 no more than MLX does; a copy is not needed.
    array = np.frombuffer(payload, np.uint8)
    array.flags.writeable = False
    return blockfile._block(header, array, key)
