"""Attention in parts: what a query gets from one run of rows, and how parts are put together.

Attention over rows ``A + B`` is exact when each part carries its unnormalized output, its largest score and its sum of
exponentials (log-sum-exp merging): the recurrence of online softmax (Milakov and Gimelshein 2018). Sequences that
share a prefix put their queries together and read it once, as matrix products: cascade attention, Hydragen (Juravsky
et al. 2024, arXiv:2402.05099); keeping shared prefixes as a tree is RadixAttention (Zheng et al. 2023,
arXiv:2312.07104).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from kvlab.backends.x86.fast_exp import pick
from kvlab.backends.x86.flash_attention import are_quicker, partial_attention
from kvlab.caches.codecs.base import Arrays, Codec
from kvlab.caches.codecs.raw import RawCodec

MANY = 1 << 17
"""Scores from which on computing them at once, on all cores, makes up for waiting for them."""


@dataclass(frozen=True)
class AttentionState:
    """What queries got from some rows.

    Attributes:
        out: unnormalized sums of values, float32 ``[batch, n_heads, v_head_dim]``.
        top: the largest score, ``[batch, n_heads, 1]``.
        total: sum of ``exp(score - top)``, ``[batch, n_heads, 1]``.
    """

    out: mx.array
    top: mx.array
    total: mx.array

    def take(self, index: mx.array) -> AttentionState:
        """The parts of the sequences ``index``."""
        return AttentionState(self.out[index], self.top[index], self.total[index])

    def spread(self, index: mx.array) -> AttentionState:
        """To a batch: entry i is part ``index[i]`` of this one, or nothing where ``index[i]`` is its length."""
        blank = AttentionState(
            mx.zeros((1, *self.out.shape[1:])),
            mx.full((1, *self.top.shape[1:]), -mx.inf),
            mx.zeros((1, *self.total.shape[1:])),
        )
        return concatenate([self, blank]).take(index)

    def merge(self, other: AttentionState) -> AttentionState:
        """Both parts' rows together."""
        top = mx.maximum(self.top, other.top)
        mine, theirs = mx.exp(self.top - top), mx.exp(other.top - top)
        return AttentionState(self.out * mine + other.out * theirs, top, self.total * mine + other.total * theirs)

    def finish(self, dtype: mx.Dtype, sinks: mx.array | None = None) -> mx.array:
        """The attention output ``[batch, n_heads, 1, v_head_dim]``; ``sinks`` ``[n_heads]`` join the denominator."""
        total = self.total if sinks is None else self.total + mx.exp(sinks[None, :, None] - self.top)
        return (self.out / total).astype(dtype)[:, :, None]


def concatenate(parts: list[AttentionState]) -> AttentionState:
    """The parts of several groups of sequences, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return AttentionState(
        mx.concatenate([part.out for part in parts]),
        mx.concatenate([part.top for part in parts]),
        mx.concatenate([part.total for part in parts]),
    )


def shared_part(codec: Codec, rows: Arrays, queries: mx.array) -> AttentionState:
    """What single queries of many sequences, scaled, ``[batch, n_heads, 1, head_dim]``, get from rows they share.

    ``rows`` are arrays ``[1, n_kv_heads, length, width]``. One matrix product for all sequences.
    """
    batch, heads, _, dim = queries.shape
    kv_heads = next(iter(rows.values())).shape[1]
    group = heads // kv_heads
    by_head = queries.reshape(batch, kv_heads, group, dim).swapaxes(0, 1)
    length = next(iter(rows.values())).shape[2]
    if isinstance(codec, RawCodec) and batch * heads * length >= MANY and queries.dtype == mx.float32 and are_quicker():
        got = partial_attention(by_head, [codec.decode(rows)])
        out, top, total = mx.array(got.out), mx.array(got.top), mx.array(got.total)
    else:
        out, top, total = _weigh(codec, rows, by_head.reshape(1, kv_heads, batch * group, dim), None)

    def apart(array: mx.array) -> mx.array:
        return array.reshape(kv_heads, batch, group, -1).swapaxes(0, 1).reshape(batch, heads, -1)

    return AttentionState(apart(out), apart(top), apart(total))


def private_part(codec: Codec, rows: Arrays, queries: mx.array, mask: mx.array | None) -> AttentionState:
    """What single queries of many sequences, scaled, get each from rows of its own.

    ``rows`` are arrays ``[batch, n_kv_heads, length, width]``; ``mask``, bool ``[batch, 1, 1, length]``, says which of
    them are real.
    """
    batch, heads, _, dim = queries.shape
    kv_heads = next(iter(rows.values())).shape[1]
    out, top, total = _weigh(codec, rows, queries.reshape(batch, kv_heads, heads // kv_heads, dim), mask)
    return AttentionState(out.reshape(batch, heads, -1), top.reshape(batch, heads, 1), total.reshape(batch, heads, 1))


def _weigh(codec: Codec, rows: Arrays, queries: mx.array, mask: mx.array | None) -> tuple[mx.array, ...]:
    scores = codec.scores(queries, rows).astype(mx.float32)
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(mx.float32).min)
    top = scores.max(axis=-1, keepdims=True)
    weights = pick()(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    return codec.mix(weights.astype(queries.dtype), rows).astype(mx.float32), top, total
