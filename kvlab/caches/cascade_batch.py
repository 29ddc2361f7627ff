"""``CascadeBatch``: a batch in which prefixes are read once for all who share them, and similar lengths go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx

from kvlab.caches.attention_state import AttentionState, concatenate, shared_part
from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.codecs.base import Codec
from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.length_bucket import LengthBucket
from kvlab.caches.shared_prefix import SharedPrefix


class CascadeSequence(Protocol):
    """What a sequence must be to share: see :class:`kvlab.caches.layer_cache.LayerCache`, which is the one there is."""

    codec: Codec
    rows: KVBuffer
    prefixes: tuple[SharedPrefix, ...]
    offset: int
    moved: bool
    layer: int
    n_layers: int

    @property
    def is_in_slab(self) -> bool: ...
    @property
    def state(self) -> list[mx.array]: ...
    @property
    def nbytes(self) -> int: ...
    def put_in(self, slab: LengthBucket, blank: Mapping[str, mx.array]) -> None: ...
    def take_out(self) -> None: ...


class CascadeBatch(BatchLayerCache):
    """The batch of sequences that keep all their tokens, in one layer.

    While decoding, a sequence's own rows stand in a :class:`LengthBucket` beside those of similar length, and its
    prefixes are attended to together with all that share them. Alone, or in a prefill, it reads its rows by itself.
    """

    def __init__(self, sequences: Sequence[CascadeSequence]) -> None:
        super().__init__(list(sequences))
        for sequence in sequences:  # a batch that was split leaves them in slabs that are not this batch's
            sequence.take_out()
        self._slabs: list[LengthBucket] = []
        self._order: mx.array | None = None
        self._back: mx.array | None = None
        self._groups: list[tuple[SharedPrefix, mx.array | None, mx.array | None]] = []
        self._laid_out = False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Give each sequence its real rows of ``[batch, n_kv_heads, n, head_dim]``."""
        if not self._together(keys.shape[2]):
            for sequence in self.sequences:
                sequence.take_out()
            self._forget_layout()
            return super().update_and_fetch(keys, values)
        new = self.sequences[0].codec.encode(keys, values)
        self._lay_out(new)
        if self._order is not None:
            new = {name: array[self._order] for name, array in new.items()}
        at = 0
        for slab in self._slabs:
            count = len(slab.lengths)
            slab.append({name: array[at : at + count] for name, array in new.items()} if count < len(keys) else new)
            at += count
        for sequence in self.sequences:
            sequence.offset += 1
        return keys, values

    def attend(self, queries: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None) -> mx.array:
        """Attention ``[batch, n_heads, n, v_head_dim]``; rows of padding are zeros."""
        if not self._together(queries.shape[2]):
            return super().attend(queries, scale=scale, mask=mask, sinks=sinks)
        scaled = queries * scale
        ordered = scaled if self._order is None else scaled[self._order]
        parts, at = [], 0
        for slab in self._slabs:
            count = len(slab.lengths)
            parts.append(slab.attend(ordered[at : at + count] if count < len(queries) else ordered))
            at += count
        whole: AttentionState = concatenate(parts)
        if self._back is not None:
            whole = whole.take(self._back)
        for prefix, members, spread in self._groups:
            part = shared_part(prefix.codec, prefix.arrays, scaled if members is None else scaled[members])
            whole = whole.merge(part if spread is None else part.spread(spread))
        return whole.finish(queries.dtype, sinks)

    def filter(self, keep: list[int]) -> None:
        """Keep the sequences ``keep``, in that order; the others take their rows along."""
        staying = set(keep)
        for i, sequence in enumerate(self.sequences):
            if i not in staying:
                sequence.take_out()
        super().filter(keep)
        self._laid_out = False

    def extend(self, other: BatchLayerCache) -> None:
        """Append the sequences of ``other``."""
        for sequence in other.sequences:
            sequence.take_out()
        super().extend(other)
        self._laid_out = False

    def __deepcopy__(self, memo: dict[int, Any]) -> CascadeBatch:
        return CascadeBatch(self.sequences)

    @property
    def state(self) -> list[mx.array]:
        slabs = [array for slab in self._slabs for array in slab.arrays.values()]
        return slabs + [array for sequence in self.sequences if not sequence.is_in_slab for array in sequence.state]

    @property
    def nbytes(self) -> int:
        """Bytes of all own rows; prefixes, which other batches may hold too, do not count."""
        apart = sum(sequence.nbytes for sequence in self.sequences if not sequence.is_in_slab)
        return apart + sum(slab.nbytes for slab in self._slabs)

    def _together(self, count: int) -> bool:
        return count == 1 and self._waiting is None and (len(self.sequences) > 1 or self.sequences[0].is_in_slab)

    def _forget_layout(self) -> None:
        self._slabs, self._laid_out = [], False

    def _lay_out(self, new: Mapping[str, mx.array]) -> None:
        """Bring every sequence into a slab, and note in what order they stand and who shares what.

        ``new`` rows tell the form of a sequence that has none yet.
        """
        if self._laid_out and not any(sequence.moved for sequence in self.sequences):
            return
        self._slabs = [slab for slab in self._slabs if slab.lengths]
        for sequence in self.sequences:
            if not sequence.is_in_slab:
                length = sequence.rows.length
                slab = next((slab for slab in self._slabs if slab.has_room(length)), None)
                if slab is None:
                    slab = LengthBucket(sequence.codec, sequence.layer / sequence.n_layers)
                    self._slabs.append(slab)
                sequence.put_in(slab, {name: array[:1, :, :0] for name, array in new.items()})
        place = {id(sequence): i for i, sequence in enumerate(self.sequences)}
        order = [place[id(member)] for slab in self._slabs for member in slab.members]
        same = order == list(range(len(order)))
        self._order = None if same else mx.array(order)
        self._back = None if same else mx.array(sorted(range(len(order)), key=order.__getitem__))
        self._groups = self._sharing()
        for sequence in self.sequences:
            sequence.moved = False
        self._laid_out = True

    def _sharing(self) -> list[tuple[SharedPrefix, mx.array | None, mx.array | None]]:
        """Every prefix with the indices of its sequences, and the way back to the batch; None for all of them."""
        users: dict[int, list[int]] = {}
        prefixes: dict[int, SharedPrefix] = {}
        for i, sequence in enumerate(self.sequences):
            for prefix in sequence.prefixes:
                prefixes[id(prefix)] = prefix
                users.setdefault(id(prefix), []).append(i)
        groups: list[tuple[SharedPrefix, mx.array | None, mx.array | None]] = []
        for key, prefix in prefixes.items():
            members = users[key]
            if len(members) == len(self.sequences):
                groups.append((prefix, None, None))
                continue
            spread = [len(members)] * len(self.sequences)
            for entry, i in enumerate(members):
                spread[i] = entry
            groups.append((prefix, mx.array(members), mx.array(spread)))
        return groups
