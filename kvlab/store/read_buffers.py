"""How stored arrays are described, read and handed on."""

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
    """One array of a block as its file describes it; ``at`` is its place in the payload, in bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    at: int

    @cached_property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @cached_property
    def end(self) -> int:
        """Where it ends in the payload."""
        return self.at + self.nbytes


class PayloadSink(Protocol):
    """Where restored KV goes: one block after the other, each at the position of its first token."""

    def take(self, payload: Payload, at: int) -> None:
        """Copy the arrays of a block; 0 comes first, and starts anew."""
        ...

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> list[memoryview] | None:
        """Bytes to read the arrays of a block into that is about to be read, one piece after the other.

        No piece holds bytes of two arrays. None has the block read aside and handed to :meth:`take` instead. The same
        ``arrays`` object as last time says that the block has the same form.
        """
        ...


class PayloadList:
    """A sink that keeps the payloads as they are."""

    def __init__(self) -> None:
        self.payloads: list[Payload] = []

    def take(self, payload: Payload, at: int) -> None:
        if at == 0:
            self.payloads.clear()
        self.payloads.append(payload)

    def targets(self, arrays: Sequence[ArraySpec], at: int) -> None:
        """None: what is kept lies on its own."""


@dataclass(frozen=True)
class BlockLayout:
    """What blocks of one form have in common: the arrays, the sizes at a file's start and how its header ends.

    ``tokens`` is how many each holds, ``payload`` the payload's length in bytes; ``head`` and ``beyond`` are memory for
    what lies around it.
    """

    stored: list[ArraySpec]
    tokens: int
    sizes: bytes
    ending: bytes
    payload: int
    head: bytearray
    beyond: bytearray


class ReadBuffer:
    """Memory for one block at a time: reading many of them touches no new pages.

    With a ``sink``, a block of exactly ``wanted`` tokens that belongs at position ``start`` is read straight into its
    rooms. ``form`` is that of the last one: the next most likely has the same.
    """

    def __init__(self, sink: PayloadSink | None = None) -> None:
        self._data = np.empty(0, np.uint8)
        self._sink = sink
        self.form: BlockLayout | None = None
        self.start = self.wanted = 0

    def take(self, size: int) -> np.ndarray:
        """``size`` bytes to write to; what was taken before is void."""
        if len(self._data) < size:
            self._data = np.empty(size, np.uint8)
        return self._data[:size]

    @property
    def has_sink(self) -> bool:
        return self._sink is not None

    def targets(self, arrays: Sequence[ArraySpec], tokens: int) -> list[memoryview] | None:
        """The sink's for a block of ``tokens`` tokens, where it wants the whole block."""
        return self._sink.targets(arrays, self.start) if self._sink is not None and tokens == self.wanted else None
