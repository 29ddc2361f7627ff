"""``LayerCache``: the live KV of one sequence in one layer, under any retention and codec.

It speaks mlx-lm's cache protocol, so it also works in plain ``mlx_lm.generate``; in a batch, sequences keep storage of
their own (see :mod:`kvlab.caches.batch`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from kvlab.backends.x86.fast_exp import is_composed
from kvlab.caches.attention_state import private_part, shared_part
from kvlab.caches.batch import BatchLayerCache
from kvlab.caches.cascade_batch import CascadeBatch
from kvlab.caches.codecs.base import Codec
from kvlab.caches.codecs.registry import make_codec
from kvlab.caches.kv_buffer import STEP, KVBuffer
from kvlab.caches.length_bucket import LengthBucket
from kvlab.caches.shared_prefix import SharedPrefix, join_rows
from kvlab.errors import ModelError
from kvlab.policies import Full, Module, Policy, Rotating, ScoreContext, Scorer

COMPOSED = 6000
"""Scores of one query from which on attention put together from parts is the quicker, where it is at all."""


@dataclass(frozen=True)
class Eviction:
    """Rows that left: their true positions ``[1, n_kv_heads, n]`` (lazy), and how many rows stayed per head."""

    positions: mx.array
    kept: int
    offset: int


class LayerCache:
    """Live KV of one sequence in one layer.

    Attributes:
        offset: tokens of the sequence so far, evicted ones included: the RoPE position of the next one.
        prompt_tokens: where the prompt ends; None means at the first step of a single token.
        moved: set when rows or prefixes changed places, for a batch that keeps a layout.
        evictions: what left since the owner last emptied the list; filled only when ``record`` is set.
        prefixes: rows of the first tokens that other sequences read too; ``rows`` holds what follows them.
        prompt_rows: the complete rows of the prompt, kept aside at its end when ``keep_prompt`` is set, because the
            eviction that follows would lose them; the owner takes them and sets None.
    """

    def __init__(
        self,
        policy: Policy,
        layer: int = 0,
        n_layers: int = 1,
        *,
        prompt_tokens: int | None = None,
        record: bool = False,
    ) -> None:
        self.retention: Module = policy.retention
        self.codec: Codec = make_codec(policy.codec)
        self.rows = KVBuffer(self.codec)
        self.prefixes: tuple[SharedPrefix, ...] = ()
        self.layer = layer
        self.n_layers = n_layers
        self.prompt_tokens = prompt_tokens
        self.record = record
        self.keep_prompt = policy.tiers is not None and isinstance(policy.retention, Scorer)
        self.offset = 0
        self.evictions: list[Eviction] = []
        self.prompt_rows: KVBuffer | None = None
        self._budget: int | None = None
        self._kept: mx.array | None = None
        self._queries: mx.array | None = None
        self._unattended = False
        self._slab: LengthBucket | None = None
        self.moved = True

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
        if self.prompt_tokens is not None and isinstance(self.retention, Full):
            self.rows.expected = with_room(self.prompt_tokens) - (self.offset - self.rows.length)
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
        """Attention of the newest ``n`` queries ``[1, n_heads, n, head_dim]`` over the rows, then eviction.

        The model's ``mask`` is not used: this layer's rows decide what is visible.

        Raises:
            ModelError: the model adds a bias of its own to the scores.
        """
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            raise ModelError("this model adds its own terms to the attention scores: use the policy full")
        self._unattended = False
        count = queries.shape[2]
        out = self._attend(queries, scale, sinks)
        if isinstance(self.retention, Rotating):
            self._drop_outside(self.retention)
        elif isinstance(self.retention, Scorer):
            self._remember(queries, self.retention.window)
            self._evict(self.retention, count, scale)
        return out

    def pass_over(self, count: int) -> None:
        """Instead of :meth:`attend` where nobody reads what it returns, under a retention that keeps all rows."""
        self._unattended = False

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """A stand-in for models that pass masks along; :meth:`attend` makes its own."""
        return None if n == 1 else "causal"

    @property
    def state(self) -> list[mx.array]:
        """Every array that is held, for ``mx.eval``."""
        more = [array for array in (self._kept, self._queries) if array is not None]
        shared = [array for prefix in self.prefixes for array in prefix.arrays.values()]
        return [*self.rows.arrays.values(), *shared, *more, *(e.positions for e in self.evictions)]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays held for this layer: rows with unused capacity, positions, remembered queries.

        A slab counts in equal shares. Prefixes, which are held together with others, do not count.
        """
        more = sum(array.nbytes for array in (self._kept, self._queries) if array is not None)
        rows = self.rows.nbytes if self._slab is None else self._slab.nbytes // len(self._slab.lengths)
        return rows + more

    @property
    def shared_nbytes(self) -> int:
        """This sequence's equal share of the bytes of its prefixes."""
        return sum(prefix.nbytes // max(1, prefix.users) for prefix in self.prefixes)

    def size(self) -> int:
        return self.offset if isinstance(self.retention, Full) else self.rows.length

    def empty(self) -> bool:
        return self.offset == 0

    def is_trimmable(self) -> bool:
        return not self.has_evicted and not self.compressed

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
        keeps_all = all(isinstance(cache.retention, Full) for cache in caches)
        return CascadeBatch(caches) if keeps_all else BatchLayerCache(caches)

    # -- shared and batched rows ------------------------------------------------------------------------------------

    @property
    def is_in_slab(self) -> bool:
        """True while the own rows stand in a slab, and not in ``rows``."""
        return self._slab is not None

    def put_in(self, slab: LengthBucket, blank: Mapping[str, mx.array]) -> None:
        """Move the own rows into ``slab``; ``blank`` are no rows in the codec's form."""
        slab.join(self, self.rows.arrays or blank, self.rows.length)
        self._slab, self.rows = slab, KVBuffer(self.codec)

    def take_out(self) -> None:
        """Move the own rows out of the slab, if they are in one."""
        self.moved = True
        if self._slab is not None:
            self.rows, self._slab = self._slab.leave(self), None

    @property
    def room(self) -> int:
        """Tokens that there is storage for: at least those that are here."""
        return self.offset - self.rows.length + self.rows.capacity

    def begin_with(self, prefixes: tuple[SharedPrefix, ...]) -> None:
        """Start an empty sequence from rows that others hold."""
        self.share(prefixes)
        self.offset = sum(prefix.length for prefix in prefixes)

    def share(self, prefixes: tuple[SharedPrefix, ...]) -> None:
        """The same rows in other pieces."""
        self.prefixes = prefixes
        self.moved = True

    def take_over(self, other: LayerCache, tokens: int) -> None:
        """Start an empty sequence with the first ``tokens`` of one that has ended, its storage included.

        ``tokens`` reach beyond the prefixes of ``other``, which is empty afterwards.
        """
        other.take_out()
        self.share(other.prefixes)
        self.rows, self.offset = other.rows, tokens
        self.rows.cut(tokens - sum(prefix.length for prefix in self.prefixes))
        other.rows, other.prefixes, other.offset = KVBuffer(other.codec), (), 0

    def reserve(self, tokens: int) -> None:
        """Have room for ``tokens`` more rows, so that the next ones do not wait for a copy."""
        self.take_out()
        self.rows.reserve(tokens)

    def give(self, length: int) -> SharedPrefix:
        """Turn the first ``length`` own rows into a prefix that others may share; it follows the present ones."""
        self.take_out()
        used = self.rows.used()
        prefix = SharedPrefix(self.codec, {name: array[:, :, :length] for name, array in used.items()})
        self.rows = KVBuffer(self.codec, {name: mx.contiguous(array[:, :, length:]) for name, array in used.items()})
        self.prefixes = (*self.prefixes, prefix)
        return prefix

    def all_rows(self) -> dict[str, mx.array]:
        """The rows of all tokens, ``[1, n_kv_heads, offset, width]``, under a retention that keeps them all."""
        own = self.rows.used() if self._slab is None else self._slab.rows(self)
        return join_rows([*(prefix.arrays for prefix in self.prefixes), *([own] if own else [])])

    def _attend(self, queries: mx.array, scale: float, sinks: mx.array | None) -> mx.array:
        own, count = self.rows.used(), queries.shape[2]
        composes = is_composed() and queries.shape[1] * self.rows.length >= COMPOSED
        if count == 1 and (self.prefixes or composes) and isinstance(self.retention, Full):
            scaled = queries * scale
            part = private_part(self.codec, own, scaled, None)
            for prefix in self.prefixes:
                part = part.merge(shared_part(self.codec, prefix.arrays, scaled))
            return part.finish(queries.dtype, sinks)
        runs = [*(prefix.arrays for prefix in self.prefixes), own]
        return self.codec.attend(queries, runs, scale, self._mask(count), sinks)

    # -- what is kept -----------------------------------------------------------------------------------------------

    @property
    def compressed(self) -> bool:
        """True from the end of the prompt on, under a scorer: later rows are computed from what it kept."""
        return self._budget is not None

    @property
    def has_evicted(self) -> bool:
        return not isinstance(self.retention, Full) and self.rows.length < self.offset

    def positions(self) -> mx.array:
        """True positions of the rows, int32 ``[1, heads, length]``; heads is 1 while all heads hold the same rows."""
        if isinstance(self.retention, Rotating) and self.has_evicted:
            first = min(self.retention.sinks, self.rows.length)
            rest = self.rows.length - first
            return mx.concatenate([mx.arange(first), mx.arange(self.offset - rest, self.offset)])[None, None]
        if self._kept is None:
            return mx.arange(self.rows.length)[None, None]
        recent = self.rows.length - self._kept.shape[2]
        tail = mx.broadcast_to(mx.arange(self.offset - recent, self.offset), (1, self._kept.shape[1], recent))
        return mx.concatenate([self._kept, tail.astype(mx.int32)], axis=2)

    def restore(self, rows: dict[str, mx.array]) -> None:
        """Go on with stored rows of the first tokens, in this codec's form; those that are here already are skipped."""
        new = {name: array[:, :, self.offset :] for name, array in rows.items()}
        self.rows.append_encoded(new)
        self.offset += next(iter(new.values())).shape[2]

    def _mask(self, count: int) -> mx.array | str | None:
        """What the newest ``count`` queries may see. Rows behind a query's position are the only ones in question."""
        if not isinstance(self.retention, Rotating):
            return None if count == 1 else "causal"
        window, sinks = self.retention.window, self.retention.sinks
        if self.rows.length <= window and not self.has_evicted:
            return None if count == 1 else "causal"
        at = mx.arange(self.offset - count, self.offset)[:, None]
        row = self.positions()[0]
        return ((row <= at) & ((row < sinks) | (row > at - window)))[None, None]

    def _drop_outside(self, retention: Rotating) -> None:
        slack = max(1, retention.window // 8)
        held = self.rows.length
        limit = retention.sinks + retention.window
        if held < limit + slack:
            return
        if self.record:
            heads = next(iter(self.rows.arrays.values())).shape[1]
            gone = self.positions()[:, :, retention.sinks : held - retention.window]
            gone = mx.broadcast_to(gone, (1, heads, gone.shape[2]))
            self.evictions.append(Eviction(gone, limit, self.offset))
        self.rows.keep_spans((0, retention.sinks), (held - retention.window, held))

    def _remember(self, queries: mx.array, window: int) -> None:
        if not window:
            return
        seen = queries if self._queries is None else mx.concatenate([self._queries, queries], axis=2)
        self._queries = seen[:, :, -window:]

    def _evict(self, scorer: Scorer, count: int, scale: float) -> None:
        if self._budget is None:
            ended = self.offset >= self.prompt_tokens if self.prompt_tokens is not None else count == 1
            if not ended:
                return
            self._budget = scorer.rows(self.prompt_tokens or self.offset)
            if self.keep_prompt:
                self.prompt_rows = self.rows.snapshot()
            target = self._budget
        else:
            # Rows leave in groups, so that the copy that frees them is paid once per group.
            target = self._budget - min(scorer.interval, math.ceil(self._budget / 8)) + 1
        if self.rows.length > self._budget:
            self._keep_best(scorer, max(1, target), scale)

    def _keep_best(self, scorer: Scorer, target: int, scale: float) -> None:
        keys, values = self.rows.decode()
        heads, length = keys.shape[1], keys.shape[2]
        positions = mx.broadcast_to(self.positions(), (1, heads, length)).astype(mx.int32)
        context = ScoreContext(keys, values, positions, self._queries, scale, self.layer, self.n_layers, self.offset)
        scores = scorer.score(context)
        if scores.shape != (1, heads, length):
            raise ModelError(
                f"{type(scorer).__name__}.score returned shape {scores.shape}: it must be {(1, heads, length)}"
            )
        # From the newest back, so that of rows that score the same the newest stay.
        order = length - 1 - mx.argsort(-level(scores)[..., ::-1], axis=-1)
        stay = mx.sort(order[..., :target], axis=-1)
        if self.record:
            gone = mx.sort(order[..., target:], axis=-1)
            self.evictions.append(Eviction(mx.take_along_axis(positions, gone, axis=2), target, self.offset))
        self._kept = mx.take_along_axis(positions, stay, axis=2)
        self.rows.keep(stay)


def with_room(tokens: int) -> int:
    """Rows for a prompt, and for the first of its answer, which would wait for a copy of all else."""
    return tokens + min(STEP, tokens // 16)


def level(scores: mx.array) -> mx.array:
    """Scores without what rounding makes of equal ones: float32 with 16 bits of precision.

    The keys of a repeated token, say, have the same norm, up to rounding that depends on the batch around them.
    """
    bits = scores.astype(mx.float32).view(mx.int32)
    return ((bits + 128) & ~255).view(mx.float32)
