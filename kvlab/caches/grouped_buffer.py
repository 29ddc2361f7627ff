"""``GroupedKVBuffer``: rows that a codec encodes in groups, followed by recent rows as the model computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.base import Segment
from kvlab.caches.codecs import Arrays, Codec
from kvlab.caches.codecs.raw import RawCodec
from kvlab.caches.codecs.tiled_attention import attend_in_tiles, fit_in_a_tile
from kvlab.caches.kv_buffer import GROWTH_ROWS, KVBuffer
from kvlab.errors import ModelError


class GroupedKVBuffer(KVBuffer):
    """Storage for a codec with ``group_rows`` above 1 or ``recent_rows`` above 0.

    Encoded arrays hold whole groups. The newest rows, from ``recent_rows`` to one group more, stay in full precision;
    their oldest group is encoded when ``recent_rows`` newer rows follow it. Methods that need single encoded rows
    (``used``, ``keep``, ``keep_spans``, ``cut`` within them) raise ModelError.
    """

    def __init__(self, codec: Codec) -> None:
        super().__init__(codec)
        self.recent = KVBuffer(RawCodec())
        self._encoded_rows = 0
        self._used: dict[str, int] = {}

    def append(self, keys: mx.array, values: mx.array) -> None:
        self.recent.append(keys, values)
        self.length = self._encoded_rows + self.recent.length
        ready = (self.recent.length - self.codec.recent_rows) // self.codec.group_rows * self.codec.group_rows
        if ready > 0:
            self._encode_oldest(ready)

    def _encode_oldest(self, count: int) -> None:
        """Encode the oldest ``count`` recent rows, whole groups."""
        keys, values = self.recent.decode()
        for name, array in self.codec.encode(keys[:, :, :count], values[:, :, :count]).items():
            self._write(name, array, count)
        self._encoded_rows += count
        self.recent.keep_spans((count, self.recent.length))

    def _write(self, name: str, new: mx.array, count: int) -> None:
        """Append the array of ``count`` encoded rows, which has one row for each token or for each group."""
        tokens_per_row = count // new.shape[2]
        start, end = self._encoded_rows // tokens_per_row, self._encoded_rows // tokens_per_row + new.shape[2]
        held = self.arrays.get(name)
        if held is None or end > held.shape[2]:
            step = max(1, GROWTH_ROWS // tokens_per_row)
            room = math.ceil(end / step) * step - start
            fresh = mx.zeros((*new.shape[:2], room, *new.shape[3:]), dtype=new.dtype)
            self.arrays[name] = fresh if held is None else mx.concatenate([held[:, :, :start], fresh], axis=2)
        self.arrays[name][:, :, start:end] = new
        self._used[name] = end

    def decode(self) -> tuple[mx.array, mx.array]:
        return self.decode_some(0, self.length)

    def decode_some(self, start: int, end: int) -> Segment:
        """Return keys and values of the rows from ``start``, which begins a group, to ``end``."""
        parts: list[Segment] = []
        old = min(end, self._encoded_rows)
        if start < old:
            last = math.ceil(old / self.codec.group_rows) * self.codec.group_rows
            keys, values = self.codec.decode(self._encoded_between(start, last))
            parts.append((keys[:, :, : old - start], values[:, :, : old - start]))
        if end > self._encoded_rows:
            first = max(start, self._encoded_rows) - self._encoded_rows
            keys, values = self.recent.decode()
            recent = slice(first, end - self._encoded_rows)
            parts.append((keys[:, :, recent], values[:, :, recent]))
        if len(parts) == 1:
            return parts[0]
        return mx.concatenate([keys for keys, _ in parts], axis=2), mx.concatenate([v for _, v in parts], axis=2)

    def _encoded_between(self, start: int, end: int) -> dict[str, mx.array]:
        each = {name: self._encoded_rows // used for name, used in self._used.items()}
        return {name: array[:, :, start // each[name] : end // each[name]] for name, array in self.arrays.items()}

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        prefixes: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        if fit_in_a_tile(self.length):
            return backend.attention(queries, [self.decode()], scale, mask, sinks)
        return attend_in_tiles(backend, queries, [_Tiles(self)], scale, mask, sinks)

    def used(self) -> dict[str, mx.array]:
        raise ModelError(f"{type(self.codec).__name__} encodes rows in groups, which cannot be stored or shared yet")

    def keep(self, index: mx.array) -> None:
        raise ModelError(f"{type(self.codec).__name__} encodes rows in groups, of which single ones cannot be evicted")

    def keep_spans(self, *spans: tuple[int, int]) -> None:
        raise ModelError(f"{type(self.codec).__name__} encodes rows in groups, of which single ones cannot be evicted")

    def cut(self, length: int) -> None:
        if length < self._encoded_rows:
            raise ModelError(f"{type(self.codec).__name__} encodes rows in groups, which cannot be cut")
        self.recent.cut(length - self._encoded_rows)
        self.length = length

    @property
    def capacity(self) -> int:
        return self._encoded_rows + self.recent.capacity if hasattr(self, "recent") else 0

    @property
    def state(self) -> list[mx.array]:
        return [*self.arrays.values(), *self.recent.state]

    def reserve(self, count: int) -> None:
        self.recent.reserve(count)


@dataclass(frozen=True)
class _Tiles:
    """The rows of a buffer. Implements :class:`kvlab.caches.codecs.tiled_attention.TiledRows`."""

    rows: GroupedKVBuffer

    @property
    def kv_heads(self) -> int:
        return self.rows.state[0].shape[1]

    @property
    def length(self) -> int:
        return self.rows.length

    def decode(self, start: int, end: int) -> Segment:
        return self.rows.decode_some(start, end)
