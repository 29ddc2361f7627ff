"""Slabs: rows of a few sequences of similar length side by side, so that one operation decodes them all.

A slab is what mlx-lm's batch cache is for a whole batch, in small: rows end at a common cursor, and what stands left
of a sequence's first row is masked. It holds few sequences, so that joining and leaving cost the same in a batch of
any size, and only similar lengths, so that live bytes follow real tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from kvlab.caches.attention_state import AttentionState, private_part
from kvlab.caches.codecs.base import Codec
from kvlab.caches.kv_buffer import KVBuffer

SLOTS = 16
"""Sequences a slab."""
LEAST, MOST = 16, 64
"""Columns that a slab grows by: a sixteenth of what it has, within these bounds."""
SPREAD = 64
"""Lengths that differ by less share a slab; longer sequences may differ by a quarter."""


class LengthBucket:
    """Rows of up to SLOTS sequences in one layer: arrays ``[slots, n_kv_heads, columns, width]``.

    Args:
        turn: the layer's place among all, 0 to 1: they grow in turn, so that no step waits for all of them.

    Attributes:
        members: the sequence of each slot.
        lengths: rows of each sequence, which stand in the columns ``cursor - length`` to ``cursor``.
    """

    def __init__(self, codec: Codec, turn: float = 0.0) -> None:
        self.codec = codec
        self._turn = turn
        self.arrays: dict[str, mx.array] = {}
        self.members: list[object] = []
        self.lengths: list[int] = []
        self.cursor = 0

    def has_room(self, length: int) -> bool:
        """True when a sequence of ``length`` rows may join."""
        if len(self.lengths) >= SLOTS:
            return False
        longest, shortest = max([length, *self.lengths]), min([length, *self.lengths])
        return longest - shortest < max(SPREAD, longest // 4)

    def join(self, member: object, rows: Mapping[str, mx.array], length: int) -> None:
        """Put a sequence into a slot of its own: the first ``length`` of its rows ``[1, n_kv_heads, capacity, width]``.

        The first sequence's arrays become the slab's; those that join it are copied.
        """
        if not self.members:
            self.arrays, self.cursor = dict(rows), length
            self.members, self.lengths = [member], [length]
            return
        columns = max([length, *self.lengths])
        if length > self.cursor:
            self._resize(columns)
        for name, array in rows.items():
            fresh = mx.zeros((1, array.shape[1], self.columns, array.shape[3]), dtype=array.dtype)
            fresh[:, :, self.cursor - length : self.cursor] = array[:, :, :length]
            self.arrays[name] = mx.concatenate([self.arrays[name], fresh])
        self.members.append(member)
        self.lengths.append(length)

    def leave(self, member: object) -> KVBuffer:
        """Give a sequence its rows back and free its slot, which the last sequence moves into."""
        slot = self.members.index(member)
        last = len(self.lengths) - 1
        if not last and self.cursor == self.lengths[0]:
            rows = KVBuffer(self.codec, self.arrays)
            rows.cut(self.cursor)
        else:
            rows = KVBuffer(self.codec, {name: mx.contiguous(array) for name, array in self.rows(member).items()})
        for name, array in self.arrays.items():
            kept = array[:last]
            if slot != last:
                kept[slot : slot + 1] = array[last:]
            self.arrays[name] = kept
        self.members[slot], self.lengths[slot] = self.members[last], self.lengths[last]
        self.members.pop()
        self.lengths.pop()
        if not self.members:
            self.arrays = {}
        return rows

    def rows(self, member: object) -> dict[str, mx.array]:
        """A sequence's rows, ``[1, n_kv_heads, length, width]``."""
        slot = self.members.index(member)
        start = self.cursor - self.lengths[slot]
        return {name: array[slot : slot + 1, :, start : self.cursor] for name, array in self.arrays.items()}

    def append(self, new: Mapping[str, mx.array]) -> None:
        """One more row for every sequence, arrays ``[slots, n_kv_heads, 1, width]``."""
        if self.cursor == self.columns:
            self._resize(max(self.lengths))
        for name, array in new.items():
            self.arrays[name][:, :, self.cursor : self.cursor + 1] = array
        self.cursor += 1
        self.lengths = [length + 1 for length in self.lengths]

    def attend(self, queries: mx.array) -> AttentionState:
        """What the newest queries, scaled, ``[slots, n_heads, 1, head_dim]``, get from their own rows."""
        start = self.cursor - max(self.lengths)
        rows = {name: array[:, :, start : self.cursor] for name, array in self.arrays.items()}
        return private_part(self.codec, rows, queries, self._padding_mask(start))

    @property
    def columns(self) -> int:
        return next(iter(self.arrays.values())).shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def _padding_mask(self, start: int) -> mx.array | None:
        if min(self.lengths) == max(self.lengths):
            return None
        first = mx.array([self.cursor - start - length for length in self.lengths])
        return (mx.arange(self.cursor - start) >= first[:, None])[:, None, None]

    def _resize(self, columns: int) -> None:
        """Room for ``columns`` used columns and a step more; columns that nobody uses are given up."""
        keep = min(max(self.lengths, default=0), columns)
        ahead, self._turn = max(1, round(step(columns) * (1 - self._turn))), 0.0
        for name, array in self.arrays.items():
            slots, heads, _, width = array.shape
            left = mx.zeros((slots, heads, columns - keep, width), dtype=array.dtype)
            right = mx.zeros((slots, heads, ahead, width), dtype=array.dtype)
            self.arrays[name] = mx.concatenate([left, array[:, :, self.cursor - keep : self.cursor], right], axis=2)
        self.cursor = columns


def step(columns: int) -> int:
    """How far ahead of ``columns`` used ones storage runs."""
    return max(LEAST, min(MOST, columns // 16))
