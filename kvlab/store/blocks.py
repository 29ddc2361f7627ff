"""Blocks, and how what a caller gives becomes blocks: checked, named, priced, and protected from being written to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvlab.counts import counted
from kvlab.errors import StoreError
from kvlab.store import keys as k
from kvlab.store.keys import Namespace
from kvlab.store.read_buffers import Payload

BLOCK, CHECKPOINT = 0, 1
NUMERIC_KINDS = "biufc"
"""Kinds of NumPy dtypes that can be stored; a file never names an object."""


@dataclass(frozen=True, eq=False)
class Block:
    """Holds KV of up to a block of tokens (``kind`` BLOCK), or whole-layer state (``kind`` CHECKPOINT).

    ``tokens`` is little-endian int32; for a checkpoint they are those after the last full block, maybe none.
    ``start`` is the position of the first of them, ``cost`` the seconds that recomputing the block takes, ``used`` when
    it was last used (``time.time()``) and ``uses`` how often, the put included.
    """

    key: bytes
    parent: bytes
    ns: Namespace
    kind: int
    tokens: bytes
    start: int
    cost: float
    payload: Payload
    used: float = 0.0
    uses: int = 1

    @property
    def length(self) -> int:
        return len(self.tokens) // 4

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.payload.values())


@dataclass(frozen=True)
class Child:
    """Names a block that follows some parent, as an index knows it."""

    key: bytes
    tokens: bytes


@dataclass(frozen=True)
class BlockSlot:
    """Names the block that one payload of a put will become, before the payload itself is checked."""

    key: bytes
    parent: bytes
    tokens: bytes
    start: int
    cost: float
    payload: Payload


def plan(
    ns: Namespace, tokens: np.ndarray, start: int, payloads: Sequence[Payload], seconds: float | None
) -> list[BlockSlot]:
    """Name the blocks of a put. Raises ``StoreError`` where tokens, start and payloads do not fit."""
    if start % ns.block or start < 0:
        raise StoreError(f"start={start} is not on a block boundary; use a multiple of {ns.block}")
    lengths = [_length(payload) for payload in payloads]
    if any(length != ns.block for length in lengths[:-1]) or any(not 0 < n <= ns.block for n in lengths[-1:]):
        raise StoreError(f"payloads hold {lengths} tokens; all but the last must hold {ns.block}, and it no more")
    end = start + sum(lengths)
    if end > len(tokens):
        raise StoreError(f"payloads reach to token {end}, but there are only {counted(len(tokens), 'token')}")
    keys = [ns.root(), *k.chain_all(ns.root(), tokens[:end], ns.block)]
    slots: list[BlockSlot] = []
    for payload, length in zip(payloads, lengths, strict=True):
        parent = keys[start // ns.block]
        raw = tokens[start : start + length].tobytes()
        key = keys[start // ns.block + 1] if length == ns.block else k.chain(parent, raw)
        cost = estimated_cost(start, length) if seconds is None else seconds * length / sum(lengths)
        slots.append(BlockSlot(key, parent, raw, start, cost, payload))
        start += length
    return slots


def cut_blocks(ns: Namespace, slots: Sequence[BlockSlot]) -> list[Block]:
    """Make the blocks of these slots. Raises ``StoreError`` for arrays that cannot be stored."""
    blocks: list[Block] = []
    now = time.time()
    for slot in slots:
        _check(slot.payload)
        if any(array.ndim < 2 or array.shape[1] * 4 != len(slot.tokens) for array in slot.payload.values()):
            raise StoreError("every array of a block needs the same number of tokens on axis 1")
        payload = read_only(slot.payload)
        blocks.append(Block(slot.key, slot.parent, ns, BLOCK, slot.tokens, slot.start, slot.cost, payload, now))
        now -= 1e-6  # a leaf is older than its head
    return blocks


def cut_checkpoint(ns: Namespace, tokens: np.ndarray, payload: Payload, seconds: float | None) -> Block:
    """Make the checkpoint after ``tokens``. Raises ``StoreError`` without any, or for arrays that cannot be stored."""
    if not len(tokens):
        raise StoreError("a checkpoint needs at least one token before it")
    _check(payload)
    parent = [ns.root(), *k.chain_all(ns.root(), tokens, ns.block)][-1]
    full = len(tokens) // ns.block * ns.block
    rest = tokens[full:].tobytes()
    cost = estimated_cost(0, len(tokens)) if seconds is None else seconds
    return Block(
        k.checkpoint_key(parent, rest), parent, ns, CHECKPOINT, rest, full, cost, read_only(payload), time.time()
    )


def estimated_cost(start: int, tokens: int) -> float:
    """Estimate the relative recompute time: attention to earlier tokens costs as much as the rest at some 4,000."""
    return tokens * (1.0 + (start + tokens / 2) / 4096)


def read_only(payload: Payload) -> Payload:
    """Return views of the same arrays that readers cannot write through."""
    views = {name: array.view() for name, array in payload.items()}
    for view in views.values():
        view.flags.writeable = False
    return views


def _length(payload: Payload) -> int:
    array = next(iter(payload.values()), None)
    if array is None or getattr(array, "ndim", 0) < 2:
        raise StoreError("a block needs arrays [heads, tokens, width]: its number of tokens is on axis 1")
    return array.shape[1]


def _check(payload: Payload) -> None:
    for name, array in payload.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in NUMERIC_KINDS:
            raise StoreError(f"array {name!r} must be a NumPy array of plain numbers (bfloat16 as a uint16 view)")
