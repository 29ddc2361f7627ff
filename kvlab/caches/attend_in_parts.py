"""Attention in parts: single queries attend to rows that they share, and to rows of their own.

Sequences that share a prefix attend to it together, as matrix products that read it once: cascade attention, Hydragen
(Juravsky et al. 2024, arXiv:2402.05099); keeping shared prefixes as a tree is RadixAttention (Zheng et al.
2023, arXiv:2312.07104).
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.attention_state import AttentionState
from kvlab.caches.codecs import Arrays, Codec, EncodedRows


def shared_attention(backend: Backend, codec: Codec, rows: Arrays, queries: mx.array) -> AttentionState:
    """Compute the attention of single queries of many sequences over shared rows, as one matrix product for all.

    Args:
        rows: arrays ``[1, n_kv_heads, length, width]``.
        queries: from :meth:`kvlab.backends.Backend.scaled_queries`, ``[batch, n_heads, 1, head_dim]``.
    """
    batch, heads, _, dim = queries.shape
    kv_heads = next(iter(rows.values())).shape[1]
    group = heads // kv_heads
    by_head = queries.reshape(batch, kv_heads, group, dim).swapaxes(0, 1).reshape(1, kv_heads, batch * group, dim)
    state = backend.partial_attention(by_head, EncodedRows(codec, rows), None)

    def apart(array: mx.array) -> mx.array:
        return array.reshape(kv_heads, batch, group, -1).swapaxes(0, 1).reshape(batch, heads, -1)

    return _each(state, apart)


def private_attention(
    backend: Backend, codec: Codec, rows: Arrays, queries: mx.array, mask: mx.array | None
) -> AttentionState:
    """Compute the attention of single queries of many sequences, each over its own rows.

    Args:
        rows: arrays ``[batch, n_kv_heads, length, width]``.
        queries: from :meth:`kvlab.backends.Backend.scaled_queries`, ``[batch, n_heads, 1, head_dim]``.
        mask: bool ``[batch, 1, 1, length]``: which rows are real; None for all.
    """
    batch, heads, _, dim = queries.shape
    kv_heads = next(iter(rows.values())).shape[1]
    grouped = queries.reshape(batch, kv_heads, heads // kv_heads, dim)
    state = backend.partial_attention(grouped, EncodedRows(codec, rows), mask)
    return _each(state, lambda array: array.reshape(batch, heads, -1))


def _each(state: AttentionState, form: Callable[[mx.array], mx.array]) -> AttentionState:
    return AttentionState(form(state.out), form(state.max_score), form(state.sum_exp))
