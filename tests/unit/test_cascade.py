"""Attention in parts equals attention in one piece; slabs give every sequence its own rows."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.backends.x86.fast_exp import exp_composed
from kvlab.caches.attention_state import concatenate, private_part, shared_part
from kvlab.caches.codecs.quantized import QuantizedCodec
from kvlab.caches.codecs.raw import RawCodec
from kvlab.caches.length_bucket import SLOTS, LengthBucket

HEADS, KV_HEADS, DIM = 4, 2, 32
CODECS = [RawCodec(), QuantizedCodec(8, 32)]


def draw(seed: int, *shape: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def whole(codec, rows, queries, sinks=None):
    keys, values = codec.decode(rows)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, sinks=sinks)


def same(a: mx.array, b: mx.array) -> None:
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_a_shared_and_a_private_part_are_attention_over_both(codec, with_sinks):
    batch, shared, own = 5, 40, 9
    queries = draw(1, batch, HEADS, 1, DIM)
    prefix = codec.encode(draw(2, 1, KV_HEADS, shared, DIM), draw(3, 1, KV_HEADS, shared, DIM))
    mine = codec.encode(draw(4, batch, KV_HEADS, own, DIM), draw(5, batch, KV_HEADS, own, DIM))
    sinks = draw(6, HEADS) if with_sinks else None
    part = private_part(codec, mine, queries, None).merge(shared_part(codec, prefix, queries))
    both = {
        name: mx.concatenate([mx.broadcast_to(prefix[name], (batch, *prefix[name].shape[1:])), array], axis=2)
        for name, array in mine.items()
    }
    same(part.finish(mx.float32, sinks), whole(codec, both, queries, sinks))


def test_parts_of_some_sequences_spread_over_a_batch():
    codec = RawCodec()
    queries = draw(1, 4, HEADS, 1, DIM)
    own = codec.encode(draw(2, 4, KV_HEADS, 6, DIM), draw(3, 4, KV_HEADS, 6, DIM))
    prefix = codec.encode(draw(4, 1, KV_HEADS, 20, DIM), draw(5, 1, KV_HEADS, 20, DIM))
    alone = private_part(codec, own, queries, None)
    members = mx.array([3, 1])
    part = alone.merge(shared_part(codec, prefix, queries[members]).spread(mx.array([2, 1, 2, 0])))
    out = part.finish(mx.float32)
    for i in range(4):
        rows = {name: array[i : i + 1] for name, array in own.items()}
        if i in (1, 3):
            rows = {name: mx.concatenate([prefix[name], array], axis=2) for name, array in rows.items()}
        same(out[i : i + 1], whole(codec, rows, queries[i : i + 1]))
    same(
        concatenate([alone.take(mx.array([0])), alone.take(mx.array([1, 2, 3]))]).finish(mx.float32),
        alone.finish(mx.float32),
    )


def test_the_composed_exponential_is_as_good_as_float32():
    x = np.linspace(-86, 0, 400_001).astype(np.float32)
    got = np.array(exp_composed(mx.array(x)), np.float64)
    # The argument itself is rounded: at -86 one unit in its last place moves exp by 8e-6.
    assert np.max(np.abs(got / np.exp(x.astype(np.float64)) - 1)) < 8e-6
    assert np.max(np.abs(got / np.exp(x.astype(np.float64)) - 1)[x > -10]) < 1e-6
    far = np.array(exp_composed(mx.array([-100.0, -1e30, -np.inf, 0.0])))
    assert np.all(far[:3] < 1e-37)
    assert far[3] == pytest.approx(1.0, abs=1e-6)


class Member:
    """A sequence that remembers what its rows must be."""

    def __init__(self, number: int) -> None:
        self.rows: list[float] = []
        self.number = number


joins = st.tuples(st.just("join"), st.integers(0, 70))
leaves = st.tuples(st.just("leave"), st.integers(0, 99))
actions = st.lists(st.one_of(joins, leaves, st.just(("append", 0))), max_size=60)


@settings(max_examples=40, deadline=None)
@given(actions)
def test_a_slab_keeps_everybodys_rows_through_joins_leaves_and_growth(steps):
    slab = LengthBucket(RawCodec())
    members: list[Member] = []
    counter = iter(range(1, 10_000))

    def rows_of(values: list[float]) -> dict[str, mx.array]:
        array = mx.array(values, dtype=mx.float32).reshape(1, 1, -1, 1)
        return {"k": array, "v": -array}

    for action, size in steps:
        if action == "join" and slab.has_room(size):
            member = Member(next(counter))
            member.rows = [float(next(counter)) for _ in range(size)]
            room = [-1.0] * (size % 3)  # storage may go on behind the rows
            slab.join(member, rows_of(member.rows + room), size)
            members.append(member)
        elif action == "leave" and members:
            member = members.pop(size % len(members))
            given_back = slab.leave(member)
            if member.rows:
                assert np.array(given_back.used()["k"]).ravel().tolist() == member.rows
        elif action == "append" and members:
            new = {id(member): float(next(counter)) for member in members}
            column = mx.array([new[id(member)] for member in slab.members]).reshape(-1, 1, 1, 1)
            slab.append({"k": column, "v": -column})
            for member in members:
                member.rows.append(new[id(member)])
        assert len(members) == len(slab.lengths) <= SLOTS
        for member in members:
            if member.rows:
                held = slab.rows(member)
                assert np.array(held["k"]).ravel().tolist() == member.rows
                assert np.array(held["v"]).ravel().tolist() == [-row for row in member.rows]
