"""From what servers are told to what kvlab takes: types of KV, contexts, shares of a disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from kvlab.decoder.config import CHUNKS, FIFO, DecoderConfig
from kvlab.errors import KvlabError
from kvlab.paths import home
from kvlab.policies import Module, Quantized, Raw, format_bytes

SERVER_LOOP = DecoderConfig(prefill_step=2048, interleave=CHUNKS, retain=0, admission=FIFO)
"""What most of the servers do with requests; a preset replaces what its server does otherwise."""
KV_BITS: Mapping[str, int | str] = {"f16": "raw", "q8_0": 8, "q4_0": 4}
"""Bits of the types of KV that llama.cpp and Ollama take, and kvlab has."""
CONTEXT_MULTIPLE_TOKENS = 256
"""llama.cpp pads the context of a slot to a multiple of this many tokens."""
SHARE_ROUNDING_BYTES = 10**9
"""A share of a disk is rounded down to whole GB, so that it is the same text from day to day."""


def kv_codec(system: str, k: str, v: str) -> Module:
    """Return the codec for K and V of these types. Raises KvlabError for a type that kvlab does not have."""
    for name in (k, v):
        if name not in KV_BITS:
            raise KvlabError(f"{system}: KV of type {name} is not available; write one of {', '.join(KV_BITS)}")
    if k == v == "f16":
        return Raw()
    bits = next(bits for bits in (KV_BITS[k], KV_BITS[v]) if isinstance(bits, int))
    return Quantized(bits=bits, k_bits=KV_BITS[k], v_bits=KV_BITS[v])


def padded_context(total: int | None, slots: int) -> int | None:
    """Return the context of each of some slots, of ``total`` tokens for all, padded as llama.cpp does."""
    if total is None:
        return None
    return -(-(total // slots) // CONTEXT_MULTIPLE_TOKENS) * CONTEXT_MULTIPLE_TOKENS


def size_on_ssd(size: str, percent: int) -> str:
    """Return a size as it is; for ``auto``, a share of the disk that kvlab's store lies on."""
    return share_of_disk(home() / "store", percent) if size == "auto" else size


def share_of_disk(folder: Path, percent: int) -> str:
    """Return a share of the capacity of the disk that a folder lies on, or will lie on, as a size."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    share = shutil.disk_usage(there).total * percent // 100
    return format_bytes(max(SHARE_ROUNDING_BYTES, share // SHARE_ROUNDING_BYTES * SHARE_ROUNDING_BYTES))
