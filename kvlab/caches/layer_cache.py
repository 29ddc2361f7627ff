"""``LayerCache``: the live KV of one sequence in one layer, under any retention and codec.

It speaks mlx-lm's cache protocol, so it also works in plain ``mlx_lm.generate``; in a batch, sequences keep storage of
their own (see :mod:`kvlab.caches.batch`). What stays is decided in :mod:`kvlab.caches.retention`, how rows are written
in :mod:`kvlab.caches.codecs`, how attention is computed by the backend.
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
from kvlab.caches.kv_buffer import GROWTH_ROWS, KVBuffer
from kvlab.caches.length_bucket import LengthBucket
from kvlab.caches.retention import LayerPlace, make_retention
from kvlab.caches.shared_prefix import SharedPrefix, join_rows
from kvlab.errors import ModelError
from kvlab.policies import Policy


class LayerCache:
    """Live KV of one sequence in one layer.

    Args:
        place: the layer, and what its retention may know of the sequence.
        codec: that of the policy, where it was made already; one serves any number of caches.
        backend: None is that of this process.
        buckets: which sequences of a batch share an array; None is the backend's rule.

    Attributes:
        offset: tokens of the sequence so far, evicted ones included: the RoPE position of the next one.
        moved: set when rows or prefixes changed places, for a batch that keeps a layout.
        prefixes: rows of the first tokens that other sequences read too; ``rows`` holds what follows them.
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
        self.codec = codec or make_codec(policy.codec)
        self.backend = backend or current()
        self.buckets = buckets or self.backend.buckets
        self.rows = self._new_rows()
        self.prefixes: tuple[SharedPrefix, ...] = ()
        self.offset = 0
        self._unattended = False
        self._bucket: LengthBucket | None = None
        self.moved = True

    def _new_rows(self) -> KVBuffer:
        return GroupedKVBuffer(self.codec) if self.encodes_groups else KVBuffer(self.codec)

    @property
    def encodes_groups(self) -> bool:
        """Whether the codec holds recent rows back, or encodes several at once."""
        return self.codec.group_rows > 1 or self.codec.recent_rows > 0

    # -- mlx-lm's protocol ------------------------------------------------------------------------------------------

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append new rows ``[1, n_kv_heads, n, head_dim]``. What is returned is unused: ``attend`` reads the rows.

        Raises:
            ModelError: the model's attention never reached ``attend``, so that its answers would be wrong.
        """
        if self._unattended:
            raise ModelError(
                "this model computes attention without mlx-lm's scaled_dot_product_attention, so kvlab's live caches "
                "cannot be used with it: use the policy full"
            )
        if self.place.prompt_tokens is not None and self.retention.keeps_all:
            self.rows.expected = with_room(self.place.prompt_tokens) - (self.offset - self.rows.length)
        self.rows.append(keys, values)
        self.offset += keys.shape[2]
        self._unattended = True
        return keys, values

    def attend(
        self,
        queries: mx.array,
        *,
        scale: float,
        mask: Any = None,
        sinks: mx.array | None = None,
    ) -> mx.array:
        """Compute attention of the newest ``n`` queries ``[1, n_heads, n, head_dim]`` over the rows, then evict.

        The model's ``mask`` is not used: this layer's rows decide what is visible.

        Raises:
            ModelError: the model adds a bias of its own to the scores.
        """
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            raise ModelError("this model adds its own terms to the attention scores: use the policy full")
        self._unattended = False
        out = self._attend(queries, scale, sinks)
        self.retention.note(self.rows, queries, self.offset, scale)
        if self.retention.is_due(self.length, self.offset, queries.shape[2]):
            self.retention.evict(self.rows, self.offset, scale)
        return out

    def attended_in_bucket(self, queries: mx.array, scale: float) -> None:
        """Evict after a batch has attended for this sequence, within the bucket that its rows stand in."""
        if self._bucket is None:
            return
        self.retention.note(None, queries, self.offset, scale)
        if self.retention.is_due(self.length, self.offset, 1):
            rows = KVBuffer(self.codec, self._bucket.rows(self))
            self.retention.evict(rows, self.offset, scale)
            if rows.length < self.length:
                self._bucket.rewrite(self, rows.used(), rows.length)

    def skip_attention(self, count: int) -> None:
        """Stand in for :meth:`attend` where its result is not read, under a retention that keeps all rows."""
        self._unattended = False

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Give a stand-in for models that pass masks along; :meth:`attend` makes its own."""
        return None if n == 1 else "causal"

    @property
    def state(self) -> list[mx.array]:
        """Every array that is held, for ``mx.eval``."""
        shared = [array for prefix in self.prefixes for array in prefix.arrays.values()]
        return [*self.rows.state, *shared, *self.retention.state]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays held for this layer: rows with unused capacity, positions, remembered queries.

        A bucket counts in equal shares. Prefixes, which are held together with others, do not count.
        """
        rows = self.rows.nbytes if self._bucket is None else self._bucket.nbytes // len(self._bucket.lengths)
        return rows + self.retention.nbytes

    @property
    def shared_nbytes(self) -> int:
        """This sequence's equal share of the bytes of its prefixes."""
        return sum(prefix.nbytes // max(1, prefix.users) for prefix in self.prefixes)

    def size(self) -> int:
        return self.offset if self.retention.keeps_all else self.length

    def empty(self) -> bool:
        return self.offset == 0

    def is_trimmable(self) -> bool:
        return not self.has_evicted and not self.retention.is_compressed and not self.encodes_groups

    def trim(self, n: int) -> int:
        """Forget the last ``n`` tokens; 0 when rows have been evicted, because the cut would not be exact."""
        if not self.is_trimmable():
            return 0
        self.take_out()
        n = min(n, self.rows.length)
        self.offset -= n
        self.rows.cut(self.rows.length - n)
        return n

    @staticmethod
    def merge(caches: list[LayerCache]) -> BatchLayerCache:
        return CascadeBatch(caches) if all(cache.is_batchable for cache in caches) else BatchLayerCache(caches)

    # -- shared and batched rows ------------------------------------------------------------------------------------

    @property
    def is_batchable(self) -> bool:
        """Whether the rows may stand in a bucket beside those of others."""
        evicts = not self.retention.keeps_all
        return self.retention.is_batchable and not self.encodes_groups and not (evicts and self.backend.evicts_alone)

    @property
    def length(self) -> int:
        """Own rows that are held."""
        return self.rows.length if self._bucket is None else self._bucket.length_of(self)

    @property
    def is_in_bucket(self) -> bool:
        """True while the own rows stand in a bucket, and not in ``rows``."""
        return self._bucket is not None

    def put_in(self, bucket: LengthBucket, blank: Mapping[str, mx.array]) -> None:
        """Move the own rows into ``bucket``; ``blank`` are no rows in the codec's form."""
        bucket.join(self, self.rows.arrays or blank, self.rows.length)
        self._bucket, self.rows = bucket, self._new_rows()

    def take_out(self) -> None:
        """Move the own rows out of the bucket, if they are in one."""
        self.moved = True
        if self._bucket is not None:
            self.rows, self._bucket = self._bucket.leave(self), None

    @property
    def room(self) -> int:
        """Tokens that there is storage for: at least those that are here."""
        return self.offset - self.rows.length + self.rows.capacity

    def begin_with(self, prefixes: tuple[SharedPrefix, ...]) -> None:
        """Start an empty sequence from rows that others hold."""
        self.set_prefixes(prefixes)
        self.offset = sum(prefix.length for prefix in prefixes)

    def set_prefixes(self, prefixes: tuple[SharedPrefix, ...]) -> None:
        """Replace the prefixes by others with the same rows, split differently."""
        self.prefixes = prefixes
        self.moved = True

    def take_over(self, other: LayerCache, tokens: int) -> None:
        """Start an empty sequence with the first ``tokens`` of one that has ended, its storage included.

        ``tokens`` reach beyond the prefixes of ``other``, which is empty afterwards.
        """
        other.take_out()
        self.set_prefixes(other.prefixes)
        self.rows, self.offset = other.rows, tokens
        self.rows.cut(tokens - sum(prefix.length for prefix in self.prefixes))
        other.rows, other.prefixes, other.offset = other._new_rows(), (), 0

    def reserve(self, tokens: int) -> None:
        """Have room for ``tokens`` more rows, so that the next ones do not wait for a copy."""
        self.take_out()
        self.rows.reserve(tokens)

    def share_first(self, length: int) -> SharedPrefix:
        """Turn the first ``length`` own rows into a prefix that others may share; it follows the present prefixes."""
        self.take_out()
        used = self.rows.used()
        prefix = SharedPrefix(self.codec, {name: array[:, :, :length] for name, array in used.items()})
        self.rows = KVBuffer(self.codec, {name: mx.contiguous(array[:, :, length:]) for name, array in used.items()})
        self.prefixes = (*self.prefixes, prefix)
        return prefix

    def all_rows(self) -> dict[str, mx.array]:
        """Give the rows of all tokens, ``[1, n_kv_heads, offset, width]``, under a retention that keeps them all."""
        own = self.rows.used() if self._bucket is None else self._bucket.rows(self)
        return join_rows([*(prefix.arrays for prefix in self.prefixes), *([own] if own else [])])

    def restore(self, rows: dict[str, mx.array]) -> None:
        """Go on with stored rows of the first tokens, in this codec's form; those that are here already are skipped."""
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
        prefixes = [prefix.arrays for prefix in self.prefixes]
        return self.rows.attend(self.backend, queries, prefixes, scale, mask, sinks)

    def _in_parts(self, heads: int) -> bool:
        rows = sum(prefix.length for prefix in self.prefixes)
        shares = bool(rows) and self.backend.shares_attention(1, rows)
        return shares or self.backend.composes(heads * self.rows.length)

    # -- what is kept -----------------------------------------------------------------------------------------------

    @property
    def has_evicted(self) -> bool:
        return not self.retention.keeps_all and self.length < self.offset

    def positions(self) -> mx.array:
        """Give the true positions of the rows, see :meth:`kvlab.caches.retention.Retention.positions`."""
        return self.retention.positions(self.length, self.offset)


def with_room(tokens: int) -> int:
    """Count rows for a prompt, and for the first of its answer, which would wait for a copy of all else."""
    return tokens + min(GROWTH_ROWS, tokens // 16)
