"""``KVBuffer``: K and V of one sequence in one layer, in arrays that grow in steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.caches.codecs import Arrays, Codec
from kvlab.errors import ModelError

GROWTH_ROWS = 64
"""Rows by which storage grows: few, so that live bytes follow the number of tokens, but enough that copies are rare."""


class KVBuffer:
    """K and V as named arrays ``[1, n_kv_heads, capacity, width]``, of which the first ``length`` rows are used.

    Attributes:
        expected: number of rows that are known to come: storage grows to exactly that many at once.
    """

    def __init__(self, codec: Codec, arrays: Mapping[str, mx.array] | None = None) -> None:
        self.codec = codec
        self.arrays: dict[str, mx.array] = dict(arrays or {})
        self.length = self.capacity
        self.expected = 0

    def append(self, keys: mx.array, values: mx.array) -> None:
        """Encode and append new rows ``[1, n_kv_heads, n, width]``."""
        self.append_encoded(self.codec.encode(keys, values))

    def append_encoded(self, new: Mapping[str, mx.array]) -> None:
        """Append rows that are already encoded, as :meth:`used` or a store returns them."""
        count = next(iter(new.values())).shape[2]
        end = self.length + count
        if not self.arrays or end > self.capacity:
            self._grow(new, end)
        for name, array in new.items():
            self.arrays[name][:, :, self.length : end] = array
        self.length = end

    def decode(self) -> tuple[mx.array, mx.array]:
        """Return keys and values ``[1, n_kv_heads, length, head_dim]`` as attention reads them."""
        return self.codec.decode(self.used())

    def decode_last(self, count: int) -> tuple[mx.array, mx.array]:
        """Return keys and values of the last ``count`` rows, ``[1, n_kv_heads, count, head_dim]``."""
        start = self.length - count
        return self.codec.decode({name: array[:, :, start : self.length] for name, array in self.arrays.items()})

    def used(self) -> dict[str, mx.array]:
        """Return views of the used rows of every array."""
        return {name: array[:, :, : self.length] for name, array in self.arrays.items()}

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        prefixes: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """Compute attention of the newest queries over ``prefixes``, which are encoded, and these rows.

        Shapes are those of :meth:`kvlab.backends.Backend.attention`.
        """
        return self.codec.attend(backend, queries, [*prefixes, self.used()], scale, mask, sinks)

    def keep(self, index: mx.array) -> None:
        """Keep the rows ``index`` ``[1, n_kv_heads, n]`` of every head and free the others."""
        self.arrays = {name: mx.take_along_axis(array, index[..., None], axis=2) for name, array in self.arrays.items()}
        self.length = index.shape[2]

    def keep_each(self, index: mx.array, counts: Sequence[int]) -> None:
        """Keep the last ``counts[h]`` rows of ``index`` ``[1, n_kv_heads, n]`` in each head, and free the others.

        Raises ModelError where heads keep different numbers, which takes a ``RaggedKVBuffer``.
        """
        if min(counts) < max(counts):
            raise ModelError("heads that keep different numbers of rows cannot be in one array")
        self.keep(index[:, :, index.shape[2] - max(counts) :])

    def keep_of_last(self, count: int, index: mx.array) -> None:
        """Keep the rows ``index`` ``[1, n_kv_heads, n]`` of the last ``count``, and all rows before these.

        No other row moves, and storage of the rows that leave is used again.
        """
        start, kept = self.length - count, index.shape[2]
        for name, array in self.arrays.items():
            stay = mx.take_along_axis(array[:, :, start : self.length], index[..., None], axis=2)
            self.arrays[name][:, :, start : start + kept] = stay
        self.length = start + kept

    def expect(self, more: int) -> None:
        """Note that ``more`` rows will come before rows are evicted again."""
        self.expected = self.length + more

    def keep_spans(self, *spans: tuple[int, int]) -> None:
        """Keep the rows of the half-open ``spans``, in order, for all heads, and free the others."""
        self.arrays = {
            name: mx.concatenate([array[:, :, a:b] for a, b in spans], axis=2) for name, array in self.arrays.items()
        }
        self.length = sum(b - a for a, b in spans)

    def cut(self, length: int) -> None:
        """Remove the rows behind ``length``; their storage is overwritten later."""
        self.length = min(self.length, length)

    def snapshot(self) -> KVBuffer:
        """Return a read-only view of the present rows; an eviction makes new arrays and leaves them unchanged."""
        other = KVBuffer(self.codec, self.arrays)
        other.length = self.length
        return other

    @property
    def head_lengths(self) -> list[int]:
        """Number of rows of each KV head; empty before the first row."""
        return [self.length] * next(iter(self.arrays.values())).shape[1] if self.arrays else []

    @property
    def capacity(self) -> int:
        """Rows that the arrays have storage for."""
        return next(iter(self.arrays.values())).shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that are held, unused capacity included."""
        return sum(array.nbytes for array in self.state)

    @property
    def state(self) -> list[mx.array]:
        """Every array that is held."""
        return list(self.arrays.values())

    def reserve(self, count: int) -> None:
        """Allocate storage for ``count`` more rows, where there is none."""
        if self.arrays and self.length + count > self.capacity:
            self._grow(self.arrays, self.length + count)

    def _grow(self, new: Mapping[str, mx.array], end: int) -> None:
        whole = self.expected if self.expected >= end else whole_steps(end)
        room = whole - self.length
        for name, array in new.items():
            fresh = mx.zeros((*array.shape[:2], room, *array.shape[3:]), dtype=array.dtype)
            held = self.arrays.get(name)
            self.arrays[name] = fresh if held is None else mx.concatenate([held[:, :, : self.length], fresh], axis=2)


def whole_steps(rows: int) -> int:
    """Return the rows that storage for ``rows`` has when it grows in steps."""
    return math.ceil(rows / GROWTH_ROWS) * GROWTH_ROWS
