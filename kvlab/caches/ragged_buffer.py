"""``RaggedKVBuffer``: rows of which each KV head keeps a number of its own, in memory of that size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.caches.codecs import Arrays, Codec
from kvlab.caches.kv_buffer import KVBuffer
from kvlab.errors import ModelError


class RaggedKVBuffer(KVBuffer):
    """Holds all heads in the same arrays until they differ in length, and from then on each head in its own.

    ``length`` is that of the longest head. Rows are counted, decoded and kept as if shorter heads were filled in front,
    so that the last row is the newest of every head. Once heads differ, methods that need one array of all heads raise
    ModelError.
    """

    def __init__(self, codec: Codec, arrays: Mapping[str, mx.array] | None = None) -> None:
        self.heads: tuple[KVBuffer, ...] = ()
        super().__init__(codec, arrays)

    def append_encoded(self, new: Mapping[str, mx.array]) -> None:
        if not self.heads:
            super().append_encoded(new)
            return
        for at, head in enumerate(self.heads):
            head.append_encoded(_of_head(new, at))
        self._measure()

    def decode(self) -> tuple[mx.array, mx.array]:
        if not self.heads:
            return super().decode()
        keys, values = zip(*(head.decode() for head in self.heads), strict=True)
        return self._joined(keys), self._joined(values)

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        prefixes: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        if not self.heads:
            return super().attend(backend, queries, prefixes, scale, mask, sinks)
        if isinstance(mask, mx.array):
            raise ModelError("heads of different lengths cannot have one mask")
        group = queries.shape[1] // len(self.heads)
        parts = [slice(at * group, (at + 1) * group) for at in range(len(self.heads))]
        return mx.concatenate(
            [
                head.attend(
                    backend,
                    queries[:, part],
                    [_of_head(prefix, at) for prefix in prefixes],
                    scale,
                    mask,
                    None if sinks is None else sinks[part],
                )
                for at, (head, part) in enumerate(zip(self.heads, parts, strict=True))
            ],
            axis=1,
        )

    def keep_each(self, index: mx.array, counts: Sequence[int]) -> None:
        held = self.head_lengths
        heads = self.heads or tuple(
            _buffer(self.codec, _of_head(self.arrays, at), self.length) for at in range(len(held))
        )
        for at, (head, count) in enumerate(zip(heads, counts, strict=True)):
            head.keep(index[:, at : at + 1, index.shape[2] - count :] - (self.length - held[at]))
        self.heads, self.arrays = heads, {}
        self._measure()

    def expect(self, more: int) -> None:
        super().expect(more)
        for head in self.heads:
            head.expect(more)

    def reserve(self, count: int) -> None:
        if not self.heads:
            super().reserve(count)
        for head in self.heads:
            head.reserve(count)

    def snapshot(self) -> KVBuffer:
        self._require_joined()
        return super().snapshot()

    def used(self) -> dict[str, mx.array]:
        self._require_joined()
        return super().used()

    def keep(self, index: mx.array) -> None:
        self._require_joined()
        super().keep(index)

    def keep_spans(self, *spans: tuple[int, int]) -> None:
        self._require_joined()
        super().keep_spans(*spans)

    def cut(self, length: int) -> None:
        self._require_joined()
        super().cut(length)

    @property
    def head_lengths(self) -> list[int]:
        return [head.length for head in self.heads] if self.heads else super().head_lengths

    @property
    def capacity(self) -> int:
        return max(head.capacity for head in self.heads) if self.heads else super().capacity

    @property
    def state(self) -> list[mx.array]:
        return [array for head in self.heads for array in head.state] if self.heads else super().state

    def _measure(self) -> None:
        self.length = max(head.length for head in self.heads)

    def _joined(self, sides: Sequence[mx.array]) -> mx.array:
        """Join the rows of each head, ``[1, 1, n, width]``, filled with zeros in front up to the longest head."""
        filled = (mx.pad(side, [(0, 0), (0, 0), (self.length - side.shape[2], 0), (0, 0)]) for side in sides)
        return mx.concatenate(list(filled), axis=1)

    def _require_joined(self) -> None:
        if self.heads:
            raise ModelError("heads keep different numbers of rows, which cannot be in one array, stored or cut")


def _of_head(arrays: Arrays, at: int) -> dict[str, mx.array]:
    return {name: array[:, at : at + 1] for name, array in arrays.items()}


def _buffer(codec: Codec, arrays: Arrays, length: int) -> KVBuffer:
    made = KVBuffer(codec, arrays)
    made.length = length
    return made
