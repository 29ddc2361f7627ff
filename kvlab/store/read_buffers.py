"""Describe stored arrays, and read them into memory where they are used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

Payload = Mapping[str, np.ndarray]
"""The arrays of one block by name; of a token block, axis 1 of each is the token axis ``[heads, tokens, width]``."""


@dataclass(frozen=True)
class ArraySpec:
    """Describes one array of a block in its file; ``at`` is its offset in the payload, in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    at: int

    @cached_property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def end(self) -> int:
        """Return the offset of the array's end in the payload."""
        return self.at + self.nbytes


class PayloadSink(Protocol):
    """Takes restored KV: one block after the other, each at the position of its first token."""

    def take(self, payload: Payload, at: int) -> None:
        """Copy the arrays of a block whose first token is at ``at``; ``at=0`` starts from the beginning."""
        ...

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> list[memoryview] | None:
        """Return memory to read the arrays of the next block into, one buffer after the other.

        No buffer holds bytes of two arrays. With None the block is read elsewhere and handed to :meth:`take`. The same
        ``arrays`` object as last time says that the block has the same layout.
        """
        ...


class PayloadList:
    """Keeps the payloads as they are: a sink without memory of its own."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []

    def take(self, payload: Payload, at: int) -> None:
        if at == 0:
            self.payloads.clear()
        self.payloads.append(payload)

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> None:
        """Return None: every payload keeps its own memory."""


@dataclass(frozen=True)
class BlockLayout:
    """Describes what the files of blocks of one layout have in common.

    Attributes:
        arrays: the arrays of the payload.
        tokens: tokens in each block.
        sizes: the bytes at the file's start that give its sizes.
        header_end: how its header ends, from the arrays on.
        payload_bytes: length of the payload.
        header: memory to read what precedes the payload into.
        beyond: memory for one byte behind the payload, which a sound file does not have.
    """

    arrays: list[ArraySpec]
    tokens: int
    sizes: bytes
    header_end: bytes
    payload_bytes: int
    header: bytearray
    beyond: bytearray


class ReadBuffer:
    """Holds memory for one block at a time, so that reading many of them touches no new pages.

    With a ``sink``, a block of exactly ``wanted`` tokens that belongs at position ``start`` is read straight into the
    sink's memory. ``layout`` is that of the last block: the next one most likely has the same.
    """

    def __init__(self, sink: PayloadSink | None = None) -> None:
        self._data = np.empty(0, np.uint8)
        self._sink = sink
        self.layout: BlockLayout | None = None
        self.start = self.wanted = 0

    def take(self, size: int) -> np.ndarray:
        """Return ``size`` bytes to write to; what was taken before is overwritten."""
        if len(self._data) < size:
            self._data = np.empty(size, np.uint8)
        return self._data[:size]

    @property
    def has_sink(self) -> bool:
        return self._sink is not None

    def targets(self, arrays: Sequence[ArraySpec], tokens: int) -> list[memoryview] | None:
        """Return the sink's memory for a block of ``tokens`` tokens; None unless it wants the whole block."""
        return self._sink.targets(arrays, self.start) if self._sink is not None and tokens == self.wanted else None
