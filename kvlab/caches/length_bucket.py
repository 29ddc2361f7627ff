"""``LengthBucket``: rows of a few sequences of similar length side by side, so that one operation decodes them all.

A bucket is what mlx-lm's batch cache is for a whole batch, in small: rows end at a common cursor, and what stands left
of a sequence's first row is masked. It holds few sequences, so that joining and leaving cost the same in a batch of
any size, and only similar lengths, so that live bytes follow real tokens; the backend's rule says how similar.
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
        rule: how many sequences, of what lengths, and how it grows.
        turn: the layer's place among all, 0 to 1: they grow in turn, so that no step waits for all of them.
        visible: the first and the last rows of a sequence that its query sees; None: it sees all.

    Attributes:
        members: the sequence of each slot.
        lengths: rows of each sequence, which stand in the columns ``cursor - length`` to ``cursor``.
    """

    def __init__(
        self, codec: Codec, rule: BucketRule, turn: float = 0.0, visible: tuple[int, int] | None = None
    ) -> None:
        self.codec = codec
        self._shown = visible
        self._rule = rule
        self._turn = turn
        self.arrays: dict[str, mx.array] = {}
        self.members: list[object] = []
        self.lengths: list[int] = []
        self.cursor = 0
        self._visible: mx.array | None = None
        self._visible_is_known = False

    @property
    def has_slot(self) -> bool:
        """True when one more sequence may join, as far as numbers go."""
        return len(self.lengths) < self._rule.slots

    def fits(self, length: int) -> bool:
        """True when a sequence of ``length`` rows may join."""
        lengths = [length, *self.lengths]
        return self.has_slot and self._rule.fit_together(min(lengths), max(lengths))

    def padding_after(self, length: int) -> int:
        """Rows of padding more, once a sequence of ``length`` rows has joined."""
        longest = max(self.lengths, default=0)
        return (max(longest, length) - longest) * len(self.lengths) + max(longest, length) - length

    def join(self, member: object, rows: Mapping[str, mx.array], length: int) -> None:
        """Put a sequence into a slot of its own: the first ``length`` of its rows ``[1, n_kv_heads, capacity, width]``.

        The first sequence's arrays become the bucket's; those that join it are copied.
        """
        self._visible_is_known = False
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
        self._visible_is_known = False
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
        """Give a sequence's rows, ``[1, n_kv_heads, length, width]``."""
        slot = self.members.index(member)
        start = self.cursor - self.lengths[slot]
        return {name: array[slot : slot + 1, :, start : self.cursor] for name, array in self.arrays.items()}

    def length_of(self, member: object) -> int:
        """Count a sequence's rows."""
        return self.lengths[self.members.index(member)]

    def rewrite(self, member: object, rows: Mapping[str, mx.array], length: int) -> None:
        """Put fewer rows, ``[1, n_kv_heads, length, width]``, in the place of a sequence's present ones."""
        self._visible_is_known = False
        slot = self.members.index(member)
        for name, array in rows.items():
            self.arrays[name][slot : slot + 1, :, self.cursor - length : self.cursor] = array
        self.lengths[slot] = length

    def append(self, new: Mapping[str, mx.array]) -> None:
        """Write one more row for every sequence, arrays ``[slots, n_kv_heads, 1, width]``."""
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
        return self.codec.attend(backend, queries, [*before, self._seen_rows()], scale, self._seen_mask(), sinks)

    def attend_in_parts(self, backend: Backend, queries: mx.array) -> AttentionState:
        """Compute what the newest queries, scaled, ``[slots, n_heads, 1, head_dim]``, get from their own rows."""
        return private_attention(backend, self.codec, self._seen_rows(), queries, self._seen_mask())

    @property
    def _start(self) -> int:
        return self.cursor - max(self.lengths)

    def _seen_rows(self) -> dict[str, mx.array]:
        return {name: array[:, :, self._start : self.cursor] for name, array in self.arrays.items()}

    def _seen_mask(self) -> mx.array | None:
        """Which of the seen rows are real, bool ``[slots, 1, 1, n]``; None where all are.

        It is made on the host when members or storage change, for all columns, so that a step only cuts it.
        """
        if self._shown is not None and max(self.lengths) > sum(self._shown):
            return _windows(tuple(self.lengths), *self._shown)
        if min(self.lengths) == max(self.lengths):
            return None
        if not self._visible_is_known:
            first = np.array([self.cursor - length for length in self.lengths])
            self._visible = mx.array((np.arange(self.columns) >= first[:, None])[:, None, None])
            self._visible_is_known = True
        return None if self._visible is None else self._visible[..., self._start : self.cursor]

    @property
    def columns(self) -> int:
        return next(iter(self.arrays.values())).shape[2] if self.arrays else 0

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def _resize(self, columns: int) -> None:
        """Have room for ``columns`` used columns and a step more; columns that are not used are given up."""
        self._visible_is_known = False
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
    """Which of the last ``max(lengths)`` columns sequences see: sinks and window, bool ``[slots, 1, 1, n]``.

    Made on the host, once for all layers of a step.
    """
    columns = max(lengths)
    row = np.arange(columns) - (columns - np.array(lengths)[:, None])
    seen = (row >= 0) & ((row < sinks) | (row >= np.array(lengths)[:, None] - window))
    return mx.array(seen[:, None, None])
