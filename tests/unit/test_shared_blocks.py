"""Rows of compressed blocks that several sequences read: what a layer computes behind them, and how they are cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.caches import LayerCache
from kvlab.caches.codecs.raw import RawCodec
from kvlab.caches.compressed_blocks import compressed_rows
from kvlab.caches.shared_prefix import SharedPrefix
from kvlab.decoder.prefix_tree import PrefixTree
from kvlab.policies import Policy

BLOCK, ROWS = 32, 8
POLICY = Policy.parse("local(keydiff):budget=0.25,block=32")
WIDTH = 64


def rows_of(seed: int, heads: int, tokens: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=(1, heads, tokens, WIDTH)).astype(np.float32))


def feed(cache: LayerCache, seed: int, tokens: int) -> mx.array:
    """Append random rows, and return the attention of as many random queries: two for each KV head."""
    cache.update_and_fetch(rows_of(seed, 2, tokens), rows_of(seed + 1, 2, tokens))
    return cache.attend(rows_of(seed + 2, 4, tokens), scale=0.125)


def same(one: mx.array, other: mx.array) -> bool:
    return np.array_equal(np.array(one), np.array(other))


def same_state(one: LayerCache, other: LayerCache) -> bool:
    mine, theirs = compressed_rows([one]), compressed_rows([other])
    return same(one.positions(), other.positions()) and all(same(mine[name], theirs[name]) for name in theirs)


@settings(max_examples=15, deadline=None)
@given(
    blocks=st.integers(1, 5),
    shared=st.integers(1, 5),
    before=st.integers(0, BLOCK - 1),
    later=st.lists(st.integers(1, 45), min_size=1, max_size=4),
)
def test_what_follows_shared_blocks_is_what_a_sequence_alone_computes(
    blocks: int, shared: int, before: int, later: list[int]
) -> None:
    shared = min(blocks, shared)
    source, one, alone = (LayerCache(POLICY) for _ in range(3))
    for cache in (source, alone):
        for block in range(blocks if cache is source else shared):
            feed(cache, 10 * block, BLOCK)
    if before:
        feed(source, 500, before)
    prefix = source.share_first(shared * BLOCK)
    one.begin_with((prefix,))
    held = {name: np.array(array) for name, array in prefix.arrays.items()}
    for i, tokens in enumerate(later):
        assert same(feed(one, 1000 + 10 * i, tokens), feed(alone, 1000 + 10 * i, tokens))
        feed(source, 2000 + 10 * i, tokens)
        assert same_state(one, alone)
    assert one.offset == alone.offset and one.size() == alone.size() and one.has_evicted
    assert all(np.array_equal(np.array(prefix.arrays[name]), array) for name, array in held.items())


def test_a_sequence_that_held_the_same_rows_itself_keeps_only_what_follows_them() -> None:
    source, one, alone = (LayerCache(POLICY) for _ in range(3))
    for cache in (source, one, alone):
        for block in range(3):
            feed(cache, 10 * block, BLOCK)
    feed(one, 700, 5), feed(alone, 700, 5)
    one.begin_with((source.share_first(2 * BLOCK),))
    assert one.length == ROWS + 5 and source.length == ROWS
    assert same(feed(one, 800, 40), feed(alone, 800, 40)) and same_state(one, alone)


def test_bytes_of_shared_blocks_and_their_positions_count_once() -> None:
    source, alone = LayerCache(POLICY), LayerCache(POLICY)
    for cache in (source, alone):
        for block in range(4):
            feed(cache, 10 * block, BLOCK)
    mx.eval(source.state)
    prefix = source.share_first(4 * BLOCK)
    others = [LayerCache(POLICY) for _ in range(3)]
    for other in others:
        other.begin_with((prefix,))
    prefix.users = 4
    assert prefix.nbytes == 4 * ROWS * 2 * (2 * WIDTH * 4 + 4)
    assert sum(cache.nbytes for cache in (source, *others)) == prefix.nbytes <= alone.nbytes
    assert all(cache.shared_nbytes == 0 for cache in (source, *others))  # a tree counts those


def test_a_prefix_is_cut_at_a_block_with_its_positions() -> None:
    arrays = {"k": rows_of(1, 2, 3 * ROWS), "v": rows_of(2, 2, 3 * ROWS)}
    positions = mx.broadcast_to(mx.arange(3 * ROWS), (1, 2, 3 * ROWS))
    whole = SharedPrefix(RawCodec(), arrays, 3 * BLOCK, positions)
    whole.users = 3
    head, tail = whole.split(2 * BLOCK)
    assert [(one.tokens, one.length, one.users) for one in (head, tail)] == [(64, 16, 3), (32, 8, 3)]
    assert head.positions is not None and tail.positions is not None
    assert same(mx.concatenate([head.positions, tail.positions], axis=2), positions)
    assert same(mx.concatenate([head.arrays["k"], tail.arrays["k"]], axis=2), arrays["k"])
    assert head.nbytes + tail.nbytes == whole.nbytes


@pytest.mark.parametrize(("common", "found"), [(31, 0), (64, 64), (95, 64), (96, 96)])
def test_a_tree_of_pieces_finds_whole_ones(common: int, found: int) -> None:
    def request(tokens: list[int], layers: list[Any]) -> Any:
        array = np.array(tokens, np.int32)
        return SimpleNamespace(context=tokens, context_array=array, layers=layers, tenant="", path=[])

    tree = PrefixTree(BLOCK)
    ended, running = request([1] * 200, []), request([1] * common + [2] * 50, [object()])
    for one in (ended, running):
        tree.join(one, 0)
    assert tree.source(request([1] * 200, []), 200) == (running, found)
    tree.remove_ended()
    assert tree._requests == [running]
