"""``LayerCache``: the live KV of one sequence in one layer, under any retention and codec.

It implements mlx-lm's cache protocol, so that it also works in plain ``mlx_lm.generate``; for batches see
:mod:`kvlab.caches.cascade_batch`. :mod:`kvlab.caches.retention` decides which rows stay, :mod:`kvlab.caches.codecs` how
rows are written, and the backend how attention is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from kvlab.backends import Backend, current
from kvlab.backends.base import BucketRule
from kvlab.caches.attend_in_parts import private_attention, shared_attention
from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.cascade_batch import CascadeBatch
from kvlab.caches.codecs import Codec, make_codec
from kvlab.caches.grouped_buffer import GroupedKVBuffer
from kvlab.caches.kv_buffer import GROWTH_ROWS, KVBuffer, whole_steps
from kvlab.caches.length_bucket import LengthBucket
from kvlab.caches.ragged_buffer import RaggedKVBuffer
from kvlab.caches.retention import LayerPlace, make_retention
from kvlab.caches.shared_prefix import SharedPrefix, join_rows
from kvlab.errors import ModelError
from kvlab.policies import Policy


class LayerCache:
    """Live KV of one sequence in one layer.

    Args:
        place: the layer, and what its retention may know about the sequence.
        codec: the policy's codec; None makes one. Several caches may use the same.
        backend: None is that of this process.
        buckets: which sequences of a batch share an array; None is the backend's rule.

    Attributes:
        offset: tokens of the sequence so far, evicted ones included: the RoPE position of the next one.
        rows: own rows; empty while they are in a bucket.
        prefixes: rows of the first tokens, which other sequences may read too; own rows follow them.
        moved: whether own rows or prefixes have moved since a batch noted its layout.
    """

    def __init__(
        self,
        policy: Policy,
        place: LayerPlace | None = None,
        *,
        codec: Codec | None = None,
        backend: Backend | None = None,
        buckets: BucketRule | None = None,
    ) -> None:
        self.place = place or LayerPlace()
        self.retention = make_retention(policy.retention, self.place)
        self.codec = codec or make_codec(policy.codec).for_layer(self.place.layer, self.place.n_layers)
        self.backend = backend or current()
        self.buckets = buckets or self.backend.buckets
        self.rows = self._new_rows()
        self.prefixes: tuple[SharedPrefix, ...] = ()
        self.offset = 0
        self._unattended = False
        self._new: tuple[mx.array, mx.array] | None = None
        self._bucket: LengthBucket | None = None
        self.moved = True

    def _new_rows(self) -> KVBuffer:
        if self.retention.keeps_by_head:
            return RaggedKVBuffer(self.codec)
        return GroupedKVBuffer(self.codec) if self.encodes_groups else KVBuffer(self.codec)

    def begin_with_rows(self, rows: Mapping[str, mx.array], tokens: int, length: int | None = None) -> None:
        """Start an empty sequence with the encoded rows of its first ``tokens``, in storage that may be larger.

        Args:
            length: rows of these tokens that are held; None: one for each.
        """
        self.rows, self.offset = self._new_rows(), tokens
        self.rows.arrays = dict(rows)
        self.rows.length = tokens if length is None else length

    @property
    def encodes_groups(self) -> bool:
        """Whether the codec keeps recent rows unencoded, or encodes several rows together."""
        return self.codec.group_rows > 1 or self.codec.recent_rows > 0

    # -- mlx-lm's protocol ------------------------------------------------------------------------------------------

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append new rows ``[1, n_kv_heads, n, head_dim]``, and return them; ``attend`` reads the stored rows.

        Raises:
            ModelError: the model's attention never reached ``attend``, so that its answers would be wrong.
        """
        if self._unattended:
            raise ModelError(
                "this model computes attention without mlx-lm's scaled_dot_product_attention, so kvlab's live caches "
                "cannot be used with it: use the policy full"
            )
        if self.place.prompt_tokens is not None and self.retention.keeps_all:
            prompt = rows_to_allocate(self.place.prompt_tokens) - (self.offset - self.rows.length)
            self.rows.expected = whole_steps(prompt)
        self._unattended = True
        room = self.retention.room(self.offset)
        if room is not None and keys.shape[2] > room:
            self._new = keys, values
            return keys, values
        self._append(keys, values)
        return keys, values

    def _append(self, keys: mx.array, values: mx.array) -> None:
        self.rows.append(keys, values)
        self.offset += keys.shape[2]

    def attend(
        self,
        queries: mx.array,
        *,
        scale: float,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Compute attention of the newest ``n`` queries ``[1, n_heads, n, head_dim]`` over the rows, then evict.

        The model's ``mask`` is not used: retention decides which rows are visible.

        Raises:
            ModelError: the model adds a bias of its own to the scores.
        """
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            raise ModelError("this model adds its own terms to the attention scores: use the policy full")
        self._unattended = False
        if self._new is not None:
            (keys, values), self._new = self._new, None
            return self._attend_by_pieces(keys, values, queries, scale, sinks)
        return self._attend_and_evict(queries, scale, sinks)

    def _attend_by_pieces(
        self, keys: mx.array, values: mx.array, queries: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        """Append new rows up to where rows are evicted, attend, evict, and go on behind them."""
        outs, start, count = [], 0, keys.shape[2]
        while start < count:
            end = min(count, start + (self.retention.room(self.offset) or count))
            self._append(keys[:, :, start:end], values[:, :, start:end])
            outs.append(self._attend_and_evict(queries[:, :, start:end], scale, sinks))
            start = end
        return mx.concatenate(outs, axis=2)

    def _attend_and_evict(self, queries: mx.array, scale: float, sinks: mx.array | None) -> mx.array:
        out = self._attend(queries, scale, sinks)
        self.retention.note(self.rows, queries, self.offset, scale)
        if self.retention.is_due(self.length, self.offset, queries.shape[2]):
            self.retention.evict(self.rows, self.offset, scale)
        return out

    def evict_in_bucket(self, queries: mx.array, scale: float) -> None:
        """Evict rows within their bucket, after the batch has computed attention.

        Args:
            queries: the newest query, ``[1, n_heads, 1, head_dim]``.
        """
        if self._bucket is None:
            return
        self.retention.note(None, queries, self.offset, scale)
        if self.retention.is_due(self.length, self.offset, 1):
            rows = KVBuffer(self.codec, self._bucket.rows(self))
            self.retention.evict(rows, self.offset, scale)
            if rows.length < self.length:
                self._bucket.rewrite(self, rows.used(), rows.length)

    def skip_attention(self, count: int) -> None:
        """Count ``count`` tokens as attended to, in place of :meth:`attend`, under a retention that keeps all rows."""
        self._unattended = False

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return a placeholder for models that pass masks on; :meth:`attend` makes its own."""
        return None if n == 1 else "causal"

    @property
    def state(self) -> list[mx.array]:
        """Every array of this cache, for ``mx.eval``."""
        shared = [array for prefix in self.prefixes for array in prefix.state]
        return [*self.rows.state, *shared, *self.retention.state]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays of this layer: rows with unused capacity, positions, and queries for scorers.

        A bucket counts in equal shares, and so do compressed blocks. Other prefixes, which their owner counts, do not.
        """
        rows = self.rows.nbytes if self._bucket is None else self._bucket.nbytes // len(self._bucket.lengths)
        return rows + self.nbytes_beside_rows

    @property
    def nbytes_beside_rows(self) -> int:
        """Bytes of positions and queries, and this sequence's equal share of the compressed blocks in its prefixes."""
        compressed = (prefix for prefix in self.prefixes if prefix.positions is not None)
        return self.retention.nbytes + sum(prefix.share_nbytes for prefix in compressed)

    @property
    def shared_nbytes(self) -> int:
        """This sequence's equal share of the bytes of its prefixes that are not compressed."""
        return sum(prefix.share_nbytes for prefix in self.prefixes if prefix.positions is None)

    def size(self) -> int:
        """Return the number of rows, prefixes included."""
        return self.offset if self.retention.keeps_all else self._shared_rows + self.length

    @property
    def _shared_rows(self) -> int:
        return sum(prefix.length for prefix in self.prefixes)

    def empty(self) -> bool:
        """Return whether there are no tokens yet."""
        return self.offset == 0

    def is_trimmable(self) -> bool:
        """Return whether the last tokens can be removed exactly: no row was evicted or encoded in groups."""
        return not self.has_evicted and not self.retention.is_compressed and not self.encodes_groups

    def trim(self, n: int) -> int:
        """Remove the last ``n`` tokens; return how many were removed, 0 where the result would not be exact."""
        if not self.is_trimmable():
            return 0
        self.leave_bucket()
        n = min(n, self.rows.length)
        self.offset -= n
        self.rows.cut(self.rows.length - n)
        return n

    @staticmethod
    def merge(caches: list[LayerCache]) -> BatchLayerCache:
        """Make a batch of the caches of several sequences in one layer."""
        return CascadeBatch(caches) if all(cache.is_batchable for cache in caches) else BatchLayerCache(caches)

    # -- shared and batched rows ------------------------------------------------------------------------------------

    @property
    def is_batchable(self) -> bool:
        """Whether the rows may be in a bucket beside those of other sequences."""
        evicts = not self.retention.keeps_all
        return self.retention.is_batchable and not self.encodes_groups and not (evicts and self.backend.evicts_alone)

    @property
    def length(self) -> int:
        """Number of own rows."""
        return self.rows.length if self._bucket is None else self._bucket.length_of(self)

    @property
    def is_in_bucket(self) -> bool:
        """Whether the own rows are in a bucket, and not in ``rows``."""
        return self._bucket is not None

    def move_to_bucket(self, bucket: LengthBucket, blank: Mapping[str, mx.array]) -> None:
        """Move the own rows into ``bucket``; ``blank`` are encoded arrays of 0 rows, for a sequence without any."""
        bucket.join(self, self.rows.arrays or blank, self.rows.length)
        self._bucket, self.rows = bucket, self._new_rows()

    def leave_bucket(self) -> None:
        """Move the own rows out of their bucket, where they are in one."""
        self.moved = True
        if self._bucket is not None:
            self.rows, self._bucket = self._bucket.leave(self), None

    @property
    def room(self) -> int:
        """Number of tokens that there is storage for, present ones included."""
        return self.offset - self.rows.length + self.rows.capacity

    def begin_with(self, prefixes: tuple[SharedPrefix, ...]) -> None:
        """Start an empty sequence with rows of other sequences, or drop own first rows, which are equal to them."""
        self.set_prefixes(prefixes)
        if self.offset:
            self.leave_bucket()
            self.retention.give_first(self._shared_rows)
            self._drop_first_rows(self._shared_rows)
            return
        self.offset = sum(prefix.tokens for prefix in prefixes)
        if prefixes and (positions := prefixes[0].positions) is not None:
            self.retention.begin_with(positions[:, :, :0])

    def set_prefixes(self, prefixes: tuple[SharedPrefix, ...]) -> None:
        """Replace the prefixes by others with the same rows, split differently."""
        self.prefixes = prefixes
        self.moved = True

    def take_over(self, other: LayerCache, tokens: int) -> None:
        """Start an empty sequence with the first ``tokens`` of one that has ended, and with its storage.

        ``tokens`` are more than those in the prefixes of ``other``, which is empty afterwards.
        """
        other.leave_bucket()
        self.set_prefixes(other.prefixes)
        self.rows, self.offset = other.rows, tokens
        self.rows.cut(tokens - sum(prefix.length for prefix in self.prefixes))
        other.rows, other.prefixes, other.offset = other._new_rows(), (), 0

    def reserve(self, tokens: int) -> None:
        """Allocate storage for ``tokens`` more rows, so that the next ones need not wait for a copy."""
        self.leave_bucket()
        self.rows.reserve(tokens)

    def share_first(self, tokens: int) -> SharedPrefix:
        """Turn the own rows of the first ``tokens`` into a prefix that others may share, behind the present ones.

        Of compressed blocks, ``tokens`` are whole ones.
        """
        self.leave_bucket()
        rows = self.retention.rows_of(tokens)
        first = {name: array[:, :, :rows] for name, array in self.rows.used().items()}
        prefix = SharedPrefix(self.codec, first, tokens, self.retention.give_first(rows))
        self._drop_first_rows(rows)
        self.prefixes = (*self.prefixes, prefix)
        return prefix

    def _drop_first_rows(self, count: int) -> None:
        used = self.rows.used()
        self.rows = KVBuffer(self.codec, {name: mx.contiguous(array[:, :, count:]) for name, array in used.items()})

    def all_rows(self) -> dict[str, mx.array]:
        """Return all rows, those of prefixes first, ``[1, n_kv_heads, rows, width]``."""
        own = self.rows.used() if self._bucket is None else self._bucket.rows(self)
        return join_rows([*(prefix.arrays for prefix in self.prefixes), *([own] if own else [])])

    def restore(self, rows: dict[str, mx.array]) -> None:
        """Append stored rows of the first tokens, encoded; rows that the cache has already are skipped."""
        new = {name: array[:, :, self.offset :] for name, array in rows.items()}
        self.rows.append_encoded(new)
        self.offset += next(iter(new.values())).shape[2]

    def _attend(self, queries: mx.array, scale: float, sinks: mx.array | None) -> mx.array:
        count = queries.shape[2]
        if count == 1 and self.retention.keeps_all and not self.encodes_groups and self._in_parts(queries.shape[1]):
            scaled = self.backend.scaled_queries(queries, scale)
            state = private_attention(self.backend, self.codec, self.rows.used(), scaled, None)
            for prefix in self.prefixes:
                shared = shared_attention(self.backend, self.codec, prefix.arrays, scaled)
                state = self.backend.merge(state, shared)
            return self.backend.finish(state, queries.dtype, sinks)
        mask = self.retention.mask(self.rows.length, self.offset, count)
        if isinstance(mask, mx.array) and mask.shape[1] > 1:  # from KV heads to query heads
            mask = mx.repeat(mask, queries.shape[1] // mask.shape[1], axis=1)
        if self.joins_rows:
            return KVBuffer(self.codec, self.all_rows()).attend(self.backend, queries, (), scale, mask, sinks)
        prefixes = [prefix.arrays for prefix in self.prefixes]
        return self.rows.attend(self.backend, queries, prefixes, scale, mask, sinks)

    @property
    def joins_rows(self) -> bool:
        """Whether attention joins the rows of prefixes and own ones: over two pieces, sums would be rounded otherwise.

        So do compressed blocks, which must be those that a sequence alone computes, bit for bit.
        """
        return bool(self.prefixes) and not self.retention.keeps_all

    @property
    def joined_nbytes(self) -> int:
        """Bytes of working memory that joined rows take in an attention."""
        return self.rows.nbytes + sum(prefix.nbytes for prefix in self.prefixes) if self.joins_rows else 0

    def _in_parts(self, heads: int) -> bool:
        rows = self._shared_rows
        shares = bool(rows) and self.backend.shares_attention(1, rows)
        return shares or self.backend.composes(heads * self.rows.length)

    # -- retained rows -----------------------------------------------------------------------------------------------

    @property
    def has_evicted(self) -> bool:
        """Whether rows have been evicted."""
        return not self.retention.keeps_all and self._shared_rows + self.length < self.offset

    def kept_positions(self) -> mx.array | None:
        """Return true positions of all rows of compressed blocks, int32 ``[1, n_kv_heads, n]``; None without any."""
        shared = [prefix.positions for prefix in self.prefixes if prefix.positions is not None]
        own = [] if self.retention.kept is None else [self.retention.kept]
        return mx.concatenate([*shared, *own], axis=2) if shared else self.retention.kept

    def positions(self) -> mx.array:
        """Return the true positions of the rows, see :meth:`kvlab.caches.retention.Retention.positions`."""
        own = self.retention.positions(self.length, self.offset)
        shared = [prefix.positions for prefix in self.prefixes if prefix.positions is not None]
        return mx.concatenate([*shared, own], axis=2) if shared else own


def rows_to_allocate(tokens: int) -> int:
    """Return the rows to allocate for a prompt, with some for its answer, which would otherwise wait for a copy."""
    return tokens + min(GROWTH_ROWS, tokens // 16)
