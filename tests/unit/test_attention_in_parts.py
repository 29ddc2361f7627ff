"""Attention in parts equals attention in one piece; a bucket gives every sequence its own rows."""

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.backends import Backend, current
from kvlab.backends.attention_state import concatenate
from kvlab.backends.base import BucketRule
from kvlab.backends.mlx_backend import MlxBackend
from kvlab.caches.attend_in_parts import private_attention, shared_attention
from kvlab.caches.codecs.quantized import QuantizedCodec
from kvlab.caches.codecs.raw import RawCodec
from kvlab.caches.length_bucket import LengthBucket
from kvlab.policies import Quantized

HEADS, KV_HEADS, DIM = 4, 2, 32
CODECS = [RawCodec(), QuantizedCodec(Quantized(bits=8, group=32))]
BACKENDS = list({backend.name: backend for backend in (MlxBackend(), current())}.values())
SLOTS = 16


def draw(seed: int, *shape: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def whole(codec, rows, queries, sinks=None):
    keys, values = codec.decode(rows)
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0, sinks=sinks)


def same(a: mx.array, b: mx.array) -> None:
    np.testing.assert_allclose(np.array(a), np.array(b), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_shared_and_private_attention_merge_into_attention_over_both(codec, with_sinks, backend: Backend):
    batch, shared, own = 5, 40, 9
    queries = draw(1, batch, HEADS, 1, DIM)
    prefix = codec.encode(draw(2, 1, KV_HEADS, shared, DIM), draw(3, 1, KV_HEADS, shared, DIM))
    mine = codec.encode(draw(4, batch, KV_HEADS, own, DIM), draw(5, batch, KV_HEADS, own, DIM))
    sinks = draw(6, HEADS) if with_sinks else None
    state = backend.merge(
        private_attention(backend, codec, mine, queries, None), shared_attention(backend, codec, prefix, queries)
    )
    both = {
        name: mx.concatenate([mx.broadcast_to(prefix[name], (batch, *prefix[name].shape[1:])), array], axis=2)
        for name, array in mine.items()
    }
    same(backend.finish(state, mx.float32, sinks), whole(codec, both, queries, sinks))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_spread_states_are_empty_for_sequences_outside(backend: Backend):
    codec = RawCodec()
    queries = draw(1, 4, HEADS, 1, DIM)
    own = codec.encode(draw(2, 4, KV_HEADS, 6, DIM), draw(3, 4, KV_HEADS, 6, DIM))
    prefix = codec.encode(draw(4, 1, KV_HEADS, 20, DIM), draw(5, 1, KV_HEADS, 20, DIM))
    alone = private_attention(backend, codec, own, queries, None)
    members = mx.array([3, 1])
    shared = shared_attention(backend, codec, prefix, queries[members]).spread(mx.array([2, 1, 2, 0]))
    out = backend.finish(backend.merge(alone, shared), mx.float32, None)
    for i in range(4):
        rows = {name: array[i : i + 1] for name, array in own.items()}
        if i in (1, 3):
            rows = {name: mx.concatenate([prefix[name], array], axis=2) for name, array in rows.items()}
        same(out[i : i + 1], whole(codec, rows, queries[i : i + 1]))
    same(
        backend.finish(concatenate([alone.take(mx.array([0])), alone.take(mx.array([1, 2, 3]))]), mx.float32, None),
        backend.finish(alone, mx.float32, None),
    )


class Member:
    """A sequence that remembers what its rows must be."""

    def __init__(self, number: int) -> None:
        self.rows: list[float] = []
        self.number = number


joins = st.tuples(st.just("join"), st.integers(0, 70))
leaves = st.tuples(st.just("leave"), st.integers(0, 99))
actions = st.lists(st.one_of(joins, leaves, st.just(("append", 0))), max_size=60)


@settings(max_examples=40)
@given(actions)
def test_bucket_keeps_rows_of_each_sequence_through_joins_leaves_and_growth(steps):
    bucket = LengthBucket(RawCodec(), BucketRule(slots=SLOTS))
    members: list[Member] = []
    counter = iter(range(1, 10_000))

    def rows_of(values: list[float]) -> dict[str, mx.array]:
        array = mx.array(values, dtype=mx.float32).reshape(1, 1, -1, 1)
        return {"k": array, "v": -array}

    for action, size in steps:
        if action == "join" and bucket.fits(size):
            member = Member(next(counter))
            member.rows = [float(next(counter)) for _ in range(size)]
            room = [-1.0] * (size % 3)  # storage may go on behind the rows
            bucket.join(member, rows_of(member.rows + room), size)
            members.append(member)
        elif action == "leave" and members:
            member = members.pop(size % len(members))
            given_back = bucket.leave(member)
            if member.rows:
                assert np.array(given_back.used()["k"]).ravel().tolist() == member.rows
        elif action == "append" and members:
            new = {id(member): float(next(counter)) for member in members}
            column = mx.array([new[id(member)] for member in bucket.members]).reshape(-1, 1, 1, 1)
            bucket.append({"k": column, "v": -column})
            for member in members:
                member.rows.append(new[id(member)])
        assert len(members) == len(bucket.lengths) <= SLOTS
        for member in members:
            if member.rows:
                held = bucket.rows(member)
                assert np.array(held["k"]).ravel().tolist() == member.rows
                assert np.array(held["v"]).ravel().tolist() == [-row for row in member.rows]
