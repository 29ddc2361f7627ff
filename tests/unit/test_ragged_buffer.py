"""Heads of different lengths: their memory is freed, and attention is that over each head's own rows."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kvlab.backends import current
from kvlab.caches.codecs import make_codec
from kvlab.caches.ragged_buffer import RaggedKVBuffer
from kvlab.errors import ModelError
from kvlab.policies import Policy

HEADS, GROUP, WIDTH, ROWS = 3, 2, 32, 40
COUNTS = (5, 17, 40)


def filled(codec: str = "raw") -> tuple[RaggedKVBuffer, mx.array, mx.array]:
    keys, values = (mx.random.normal((1, HEADS, ROWS, WIDTH), key=mx.random.key(seed)) for seed in (0, 1))
    rows = RaggedKVBuffer(make_codec(Policy.parse(codec).codec))
    rows.append(keys, values)
    return rows, keys, values


def kept(rows: RaggedKVBuffer, counts: tuple[int, ...] = COUNTS) -> None:
    """Keep the latest rows of each head."""
    width = max(counts)
    index = mx.broadcast_to(mx.arange(ROWS - width, ROWS, dtype=mx.int32), (1, HEADS, width))
    rows.keep_each(index, counts)


@pytest.mark.parametrize("codec", ["raw", "quantized:bits=8,group=32", "quantized:bits=4,group=32"])
def test_bytes_are_those_of_the_rows_that_each_head_keeps(codec: str) -> None:
    rows, *_ = filled(codec)
    row = sum(array.nbytes for array in rows.used().values()) // (HEADS * ROWS)
    kept(rows)
    assert rows.head_lengths == list(COUNTS) and rows.length == max(COUNTS)
    assert rows.nbytes == row * sum(COUNTS)
    rows.expect(2)
    rows.append(*(mx.ones((1, HEADS, 1, WIDTH)) for _ in range(2)))
    assert rows.head_lengths == [count + 1 for count in COUNTS]
    assert rows.nbytes == row * (sum(COUNTS) + 2 * HEADS)


def test_attention_is_that_of_each_head_over_its_own_rows() -> None:
    rows, keys, values = filled()
    kept(rows)
    queries = mx.random.normal((1, HEADS * GROUP, 1, WIDTH), key=mx.random.key(2))
    sinks = mx.random.normal((HEADS * GROUP,), key=mx.random.key(3))
    got = rows.attend(current(), queries, [], WIDTH**-0.5, None, sinks)
    for head in range(HEADS * GROUP):
        own = slice(ROWS - COUNTS[head // GROUP], ROWS)
        scores = np.array(queries)[0, head] @ np.array(keys)[0, head // GROUP, own].T * WIDTH**-0.5
        weights = np.exp(scores)
        wanted = weights @ np.array(values)[0, head // GROUP, own] / (weights.sum() + np.exp(np.array(sinks)[head]))
        np.testing.assert_allclose(np.array(got)[0, head], wanted, rtol=2e-5, atol=2e-6)


def test_shorter_heads_decode_as_if_they_were_filled_in_front_and_are_kept_by_these_places() -> None:
    rows, keys, _ = filled()
    kept(rows, (5, 17, 30))
    decoded = np.array(rows.decode()[0])
    assert decoded.shape == (1, HEADS, 30, WIDTH)
    assert np.all(decoded[0, 0, :25] == 0) and np.all(decoded[0, 0, 25:] == np.array(keys)[0, 0, 35:])
    newest = mx.broadcast_to(mx.array([26, 28, 29], mx.int32), (1, HEADS, 3))
    rows.keep_each(newest, (2, 3, 3))
    assert rows.head_lengths == [2, 3, 3]
    np.testing.assert_array_equal(np.array(rows.decode()[0])[0, 1], np.array(keys)[0, 1, [36, 38, 39]])
    np.testing.assert_array_equal(np.array(rows.decode()[0])[0, 0, 1:], np.array(keys)[0, 0, [38, 39]])


def test_what_needs_one_array_of_all_heads_says_why_it_cannot() -> None:
    rows, *_ = filled()
    assert rows.snapshot().length == ROWS
    kept(rows)
    for ask in (rows.used, rows.snapshot, lambda: rows.cut(3), lambda: rows.keep_spans((0, 1))):
        with pytest.raises(ModelError, match="different numbers of rows"):
            ask()
