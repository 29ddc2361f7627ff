"""``LengthBucket``: rows of a few sequences of similar length in one padded array, so that one operation serves all.

A bucket is a small form of mlx-lm's batch cache: the rows of all sequences end at a common cursor, and columns before
the first row of a sequence are masked. It has few sequences, so that the cost of joining and leaving does not depend on
the size of the batch, and only similar lengths, so that live bytes follow the number of tokens. The backend's rule
gives both limits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from kvlab.backends import Backend
from kvlab.backends.attention_state import AttentionState
from kvlab.backends.base import BucketRule
from kvlab.caches.attend_in_parts import private_attention
from kvlab.caches.codecs import Arrays, Codec
from kvlab.caches.kv_buffer import KVBuffer


class LengthBucket:
    """Rows of some sequences in one layer: arrays ``[slots, n_kv_heads, columns, width]``.

    Args:
        rule: how many sequences it holds, which lengths fit together, and by how much it grows.
        turn: index of the layer divided by the number of layers: buckets of different layers grow in different steps,
            so that no step waits for all of them.
        visible: numbers of first and of last rows that a query sees; None: it sees all rows.

    Attributes:
        members: the sequence of each slot.
        lengths: number of rows of each sequence, which are in the columns ``cursor - length`` to ``cursor``.
        cursor: column of the next row.
    """

    def __init__(
        self, codec: Codec, rule: BucketRule, turn: float = 0.0, visible: tuple[int, int] | None = None
    ) -> None:
        self.codec = codec
        self._sinks_and_window = visible
        self._rule = rule
        self._turn = turn
        self.arrays: dict[str, mx.array] = {}
        self.members: list[object] = []
        self.lengths: list[int] = []
        self.cursor = 0
        self._mask: mx.array | None = None
        self._mask_is_known = False

    @property
    def has_slot(self) -> bool:
        """Whether the bucket has a slot for one more sequence."""
        return len(self.lengths) < self._rule.slots

    def fits(self, length: int) -> bool:
        """Return whether a sequence of ``length`` rows may join."""
        lengths = [length, *self.lengths]
        return self.has_slot and self._rule.fit_together(min(lengths), max(lengths))

    def padding_after(self, length: int) -> int:
        """Return the rows of padding that are added when a sequence of ``length`` rows joins."""
        longest = max(self.lengths, default=0)
        return (max(longest, length) - longest) * len(self.lengths) + max(longest, length) - length

    def join(self, member: object, rows: Mapping[str, mx.array], length: int) -> None:
        """Add a sequence: the first ``length`` of its rows ``[1, n_kv_heads, capacity, width]``, in a slot of its own.

        The arrays of the first sequence become those of the bucket; rows of others are copied into them.
        """
        self._mask_is_known = False
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
        """Remove a sequence and return its rows; the last sequence moves into its slot."""
        self._mask_is_known = False
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
        """Return a sequence's rows, ``[1, n_kv_heads, length, width]``."""
        slot = self.members.index(member)
        start = self.cursor - self.lengths[slot]
        return {name: array[slot : slot + 1, :, start : self.cursor] for name, array in self.arrays.items()}

    def length_of(self, member: object) -> int:
        """Return the number of a sequence's rows."""
        return self.lengths[self.members.index(member)]

    def rewrite(self, member: object, rows: Mapping[str, mx.array], length: int) -> None:
        """Replace a sequence's rows by fewer ones, ``[1, n_kv_heads, length, width]``, as after an eviction."""
        self._mask_is_known = False
        slot = self.members.index(member)
        for name, array in rows.items():
            self.arrays[name][slot : slot + 1, :, self.cursor - length : self.cursor] = array
        self.lengths[slot] = length

    def append(self, new: Mapping[str, mx.array]) -> None:
        """Append one row to every sequence, arrays ``[slots, n_kv_heads, 1, width]``."""
        if self.cursor == self.columns:
            self._resize(max(self.lengths))
        for name, array in new.items():
            self.arrays[name][:, :, self.cursor : self.cursor + 1] = array
        self.cursor += 1
        self.lengths = [length + 1 for length in self.lengths]

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        scale: float,
        sinks: mx.array | None,
        prefixes: Sequence[Arrays] = (),
    ) -> mx.array:
        """Compute the attention of the newest queries ``[slots, n_heads, 1, head_dim]`` over prefixes and own rows.

        ``prefixes`` are arrays ``[1, n_kv_heads, length, width]``, which all sequences begin with.
        """
        slots = len(self.lengths)
        before = [
            {name: mx.broadcast_to(array, (slots, *array.shape[1:])) for name, array in prefix.items()}
            for prefix in prefixes
        ]
        return self.codec.attend(backend, queries, [*before, self._used_rows()], scale, self._mask_of_used(), sinks)

    def attend_in_parts(self, backend: Backend, queries: mx.array) -> AttentionState:
        """Compute the attention state of the newest queries, scaled, ``[slots, n_heads, 1, head_dim]``."""
        return private_attention(backend, self.codec, self._used_rows(), queries, self._mask_of_used())

    @property
    def _start(self) -> int:
        return self.cursor - max(self.lengths)

    def _used_rows(self) -> dict[str, mx.array]:
        return {name: array[:, :, self._start : self.cursor] for name, array in self.arrays.items()}

    def _mask_of_used(self) -> mx.array | None:
        """Return which of the used columns are rows of a sequence, bool ``[slots, 1, 1, n]``; None where all are.

        It is made on the host for all columns when members or storage change, so that a step only slices it.
        """
        if self._sinks_and_window is not None and max(self.lengths) > sum(self._sinks_and_window):
            return _windows(tuple(self.lengths), *self._sinks_and_window)
        if min(self.lengths) == max(self.lengths):
            return None
        if not self._mask_is_known:
            first = np.array([self.cursor - length for length in self.lengths])
            self._mask = mx.array((np.arange(self.columns) >= first[:, None])[:, None, None])
            self._mask_is_known = True
        return None if self._mask is None else self._mask[..., self._start : self.cursor]

    @property
    def columns(self) -> int:
        """Number of columns of the arrays."""
        return next(iter(self.arrays.values())).shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, padding and unused columns included."""
        return sum(array.nbytes for array in self.arrays.values())

    def _resize(self, columns: int) -> None:
        """Reallocate the arrays for ``columns`` used columns and some ahead; other unused columns are dropped."""
        self._mask_is_known = False
        keep = min(max(self.lengths, default=0), columns)
        ahead, self._turn = max(1, round(self._rule.growth(columns) * (1 - self._turn))), 0.0
        for name, array in self.arrays.items():
            slots, heads, _, width = array.shape
            left = mx.zeros((slots, heads, columns - keep, width), dtype=array.dtype)
            right = mx.zeros((slots, heads, ahead, width), dtype=array.dtype)
            self.arrays[name] = mx.concatenate([left, array[:, :, self.cursor - keep : self.cursor], right], axis=2)
        self.cursor = columns


@functools.lru_cache(maxsize=8)
def _windows(lengths: tuple[int, ...], sinks: int, window: int) -> mx.array:
    """Return which of the last ``max(lengths)`` columns queries see: sinks and window, bool ``[slots, 1, 1, n]``.

    Made on the host, once for all layers of a step.
    """
    columns = max(lengths)
    row = np.arange(columns) - (columns - np.array(lengths)[:, None])
    seen = (row >= 0) & ((row < sinks) | (row >= np.array(lengths)[:, None] - window))
    return mx.array(seen[:, None, None])
