"""``CascadeBatch``: a batch that reads shared prefixes once for all sequences, and similar lengths together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.attention_state import concatenate
from kvlab.backends.base import BucketRule
from kvlab.caches.attend_in_parts import shared_attention
from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.codecs import Codec
from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.length_bucket import LengthBucket
from kvlab.caches.retention import LayerPlace, Retention
from kvlab.caches.shared_prefix import SharedPrefix


class CascadeSequence(Protocol):
    """A sequence in a :class:`CascadeBatch`, as :class:`kvlab.caches.layer_cache.LayerCache` implements it."""

    codec: Codec
    backend: Backend
    buckets: BucketRule
    rows: KVBuffer
    prefixes: tuple[SharedPrefix, ...]
    offset: int
    moved: bool
    place: LayerPlace
    retention: Retention

    @property
    def is_in_bucket(self) -> bool: ...
    @property
    def state(self) -> list[mx.array]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def nbytes_beside_rows(self) -> int: ...
    def move_to_bucket(self, bucket: LengthBucket, blank: Mapping[str, mx.array]) -> None: ...
    def leave_bucket(self) -> None: ...
    def evict_in_bucket(self, queries: mx.array, scale: float) -> None: ...


class CascadeBatch(BatchLayerCache):
    """A batch of sequences in one layer, of one policy.

    While decoding, the own rows of a sequence are in a :class:`LengthBucket` beside those of similar length, and all
    readers of a prefix attend to it together. A single sequence, and a prefill, read rows sequence by sequence.

    Attributes:
        order: indices of the sequences in the order of the buckets; None where it is the batch's own. Sorting the batch
            into that order (:meth:`filter`) saves four gathers in every step.
    """

    def __init__(self, sequences: Sequence[CascadeSequence]) -> None:
        super().__init__(list(sequences))
        for sequence in sequences:  # from the buckets of the batch that they were in
            sequence.leave_bucket()
        self._buckets: list[LengthBucket] = []
        self.order: list[int] | None = None
        self._order: mx.array | None = None
        self._back: mx.array | None = None
        self._groups: list[tuple[SharedPrefix, mx.array | None, mx.array | None]] = []
        self._laid_out = False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Give each sequence its real rows of ``[batch, n_kv_heads, n, head_dim]``."""
        if not self._uses_buckets(keys.shape[2]):
            if self._buckets or self._laid_out or not self._is_lone:
                for sequence in self.sequences:
                    sequence.leave_bucket()
                self._forget_layout()
            return super().update_and_fetch(keys, values)
        new = self.sequences[0].codec.encode(keys, values)
        self._lay_out(new)
        if self._order is not None:
            new = {name: array[self._order] for name, array in new.items()}
        at = 0
        for bucket in self._buckets:
            count = len(bucket.lengths)
            bucket.append({name: array[at : at + count] for name, array in new.items()} if count < len(keys) else new)
            at += count
        for sequence in self.sequences:
            sequence.offset += 1
        return keys, values

    def attend(self, queries: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None) -> mx.array:
        """Compute attention ``[batch, n_heads, n, v_head_dim]``; rows of padding are zeros."""
        if not self._uses_buckets(queries.shape[2]):
            return super().attend(queries, scale=scale, mask=mask, sinks=sinks)
        out = self._attend_in_buckets(queries, scale, sinks)
        for i, sequence in enumerate(self.sequences):
            if not sequence.retention.keeps_all:
                sequence.evict_in_bucket(queries[i : i + 1], scale)
        return out

    def _attend_in_buckets(self, queries: mx.array, scale: float, sinks: mx.array | None) -> mx.array:
        backend: Backend = self.sequences[0].backend
        if not backend.composes_batches and self._is_fused(backend):
            return self._attend_fused(backend, queries, scale, sinks)
        scaled = backend.scaled_queries(queries, scale)
        ordered = scaled if self._order is None else scaled[self._order]
        parts, at = [], 0
        for bucket in self._buckets:
            count = len(bucket.lengths)
            parts.append(bucket.attend_in_parts(backend, ordered[at : at + count] if count < len(queries) else ordered))
            at += count
        whole = concatenate(parts)
        if self._back is not None:
            whole = whole.take(self._back)
        for prefix, members, spread in self._groups:
            some = scaled if members is None else scaled[members]
            part = shared_attention(backend, prefix.codec, prefix.arrays, some)
            whole = backend.merge(whole, part if spread is None else part.spread(spread))
        return backend.finish(whole, queries.dtype, sinks)

    def _is_fused(self, backend: Backend) -> bool:
        """Return whether each bucket attends by one fused operation, also to prefixes that all sequences share."""
        if not self._groups:
            return True
        prefixes = [prefix for prefix, members, _ in self._groups if members is None]
        if len(prefixes) < len(self._groups) or not self.sequences[0].codec.is_exact:
            return False
        return not backend.shares_attention(len(self.sequences), sum(prefix.length for prefix in prefixes))

    def _attend_fused(self, backend: Backend, queries: mx.array, scale: float, sinks: mx.array | None) -> mx.array:
        """Compute attention over common prefixes and own rows, as one fused operation for each bucket."""
        ordered = queries if self._order is None else queries[self._order]
        prefixes = [prefix.arrays for prefix, _, _ in self._groups]
        outs, at = [], 0
        for bucket in self._buckets:
            count = len(bucket.lengths)
            some = ordered[at : at + count] if count < len(queries) else ordered
            outs.append(bucket.attend(backend, some, scale, sinks, prefixes))
            at += count
        whole = outs[0] if len(outs) == 1 else mx.concatenate(outs)
        return whole if self._back is None else whole[self._back]

    def filter(self, keep: list[int]) -> None:
        """Keep the sequences ``keep``, in that order; the others take their rows out of the buckets."""
        staying = set(keep)
        for i, sequence in enumerate(self.sequences):
            if i not in staying:
                sequence.leave_bucket()
        super().filter(keep)
        self._laid_out, self.order = False, None

    def extend(self, other: BatchLayerCache) -> None:
        """Append the sequences of ``other``."""
        for sequence in other.sequences:
            sequence.leave_bucket()
        super().extend(other)
        self._laid_out, self.order = False, None

    def __deepcopy__(self, memo: dict[int, Any]) -> CascadeBatch:
        return CascadeBatch(self.sequences)

    @property
    def state(self) -> list[mx.array]:
        """Every array of buckets and sequences, for ``mx.eval``."""
        buckets = [array for bucket in self._buckets for array in bucket.arrays.values()]
        return buckets + [array for sequence in self.sequences if not sequence.is_in_bucket for array in sequence.state]

    @property
    def nbytes(self) -> int:
        """Bytes of buckets, and of the sequences as they count theirs."""
        beside = sum(one.nbytes_beside_rows if one.is_in_bucket else one.nbytes for one in self.sequences)
        return beside + sum(bucket.nbytes for bucket in self._buckets)

    def _uses_buckets(self, count: int) -> bool:
        """Return whether ``count`` tokens of each sequence are computed in buckets: those of a decode step are."""
        if count != 1 or self._waiting is not None:
            return False
        if len(self.sequences) > 1:
            return True
        # A last sequence leaves its bucket, which is a copy, only where attention to its own rows is faster.
        return self.sequences[0].is_in_bucket and self.sequences[0].backend.composes_batches

    def _forget_layout(self) -> None:
        self._buckets, self._laid_out, self.order = [], False, None

    def _lay_out(self, new: Mapping[str, mx.array]) -> None:
        """Put every sequence into a bucket, and note their order and which prefixes they share.

        ``new`` rows give the names, shapes and dtypes of arrays for a sequence that has none yet.
        """
        if self._laid_out and not any(sequence.moved for sequence in self.sequences):
            return
        self._buckets = [bucket for bucket in self._buckets if bucket.lengths]
        # The longest first: where the number of buckets is limited, shorter ones fill their free slots.
        apart = sorted((one for one in self.sequences if not one.is_in_bucket), key=lambda one: -one.rows.length)
        for sequence in apart:
            bucket = self._bucket_for(sequence)
            sequence.move_to_bucket(bucket, {name: array[:1, :, :0] for name, array in new.items()})
        place = {id(sequence): i for i, sequence in enumerate(self.sequences)}
        order = [place[id(member)] for bucket in self._buckets for member in bucket.members]
        same = order == list(range(len(order)))
        self.order = None if same else order
        self._order = None if same else mx.array(order)
        self._back = None if same else mx.array(sorted(range(len(order)), key=order.__getitem__))
        self._groups = self._prefix_groups()
        for sequence in self.sequences:
            sequence.moved = False
        self._laid_out = True

    def _bucket_for(self, sequence: CascadeSequence) -> LengthBucket:
        """Return the bucket for ``sequence``: a new one where none has its length and one more is allowed."""
        length, rule = sequence.rows.length, sequence.buckets
        for bucket in self._buckets:
            if bucket.fits(length):
                return bucket
        free = [bucket for bucket in self._buckets if bucket.has_slot]
        if free and rule.buckets is not None and len(self._buckets) >= rule.buckets:
            return min(free, key=lambda bucket: bucket.padding_after(length))
        turn = sequence.place.layer / sequence.place.n_layers
        self._buckets.append(LengthBucket(sequence.codec, rule, turn, sequence.retention.visible))
        return self._buckets[-1]

    def _prefix_groups(self) -> list[tuple[SharedPrefix, mx.array | None, mx.array | None]]:
        """Return each shared prefix with the indices of its readers, and for each sequence its index among them.

        Both are None where all sequences read the prefix; a sequence that does not has the number of readers as index.
        """
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
