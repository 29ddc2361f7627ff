"""``kivi``: keys per channel in groups of tokens, values per token, and a window in full precision."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kvlab.backends import current
from kvlab.caches import LayerCache
from kvlab.caches.codecs import make_codec
from kvlab.errors import ModelError, PolicyError
from kvlab.policies import Kivi, Policy
from tests.codec_reference import as_float, attention

TOLERANCE = {mx.float32: 1e-5, mx.bfloat16: 0.04, mx.float16: 0.005}
"""Of one value: the arithmetic of the dtype."""


def grouped(numbers: np.ndarray, bits: int, axis: int, group: int = 32) -> np.ndarray:
    """Numbers ``[..., tokens, channels]`` between the least and the largest of their group along an axis."""
    moved = np.moveaxis(numbers, axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, group)
    least, most = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    step = (most - least) / (2**bits - 1)
    return np.moveaxis((np.round((groups - least) / step) * step + least).reshape(moved.shape), -1, axis)


@pytest.mark.parametrize(
    ("given", "written"),
    [("kivi", "kivi"), ("kivi:bits=4,v_bits=2,recent=64", "kivi:bits=4,v_bits=2,recent=64"), ("kivi:k_bits=2", "kivi")],
)
def test_equal_choices_of_kivi_have_one_spelling(given: str, written: str) -> None:
    assert str(Policy.parse(given)) == written
    assert Policy.parse(written) == Policy.parse(given)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("kivi:bits=3", "write bits=2 or bits=4"),
        ("kivi:v_bits=raw", "v_bits=raw is not available; write v_bits=2 or v_bits=4"),
        ("kivi:group=16", "write group=32"),
        ("kivi:recent=-1", "write recent=0 or more"),
        ("kivi|paged", "'kivi' encodes rows in groups, which 'paged' cannot store or share"),
        ("kivi|knorm", "'kivi' encodes rows in groups, of which 'knorm' drops single ones"),
    ],
)
def test_kivi_refuses_what_it_does_not_have(wrong: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy.parse(wrong)


def test_kivi_refuses_heads_that_its_group_does_not_divide() -> None:
    rows = mx.zeros((1, 2, 64, 96))
    with pytest.raises(ModelError, match="96 wide, which group=64 does not divide: write kivi:group=32"):
        make_codec(Kivi(group=64)).encode(rows, rows)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("k_bits", "v_bits"), [(2, 2), (4, 2), (4, 4)])
def test_kivi_writes_keys_per_channel_and_values_per_token(k_bits: int, v_bits: int, dtype: mx.Dtype) -> None:
    mx.random.seed(0)
    keys, values = (mx.random.normal((1, 2, 96, 64)).astype(dtype) for _ in "kv")
    codec = make_codec(Kivi(k_bits=k_bits, v_bits=v_bits))
    got_keys, got_values = codec.decode(codec.encode(keys, values))
    assert got_keys.dtype == got_values.dtype == dtype
    for got, array, bits, axis in ((got_keys, keys, k_bits, 2), (got_values, values, v_bits, 3)):
        difference = np.abs(as_float(got) - grouped(as_float(array), bits, axis))
        # In 16 bits, a number in the middle of two steps may be rounded to the other one.
        assert np.quantile(difference, 1 if dtype == mx.float32 else 0.97) < TOLERANCE[dtype]


def test_a_group_of_equal_values_is_exact() -> None:
    keys = mx.broadcast_to(mx.arange(64) - 30.5, (1, 2, 32, 64))
    got, _ = make_codec(Kivi()).decode(make_codec(Kivi()).encode(keys, keys))
    assert mx.array_equal(got, keys)


def test_keys_with_outlier_channels_lose_less_per_channel_than_per_token() -> None:
    mx.random.seed(0)
    keys = mx.random.normal((1, 2, 64, 64)) + 20 * (mx.arange(64) == 3)
    codec = make_codec(Kivi(bits=2))
    per_channel, per_token = codec.decode(codec.encode(keys, keys))
    assert mx.mean((per_channel - keys) ** 2).item() < 0.2 * mx.mean((per_token - keys) ** 2).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attention_under_kivi_reads_groups_and_a_window_in_full_precision(dtype: mx.Dtype) -> None:
    """200 tokens with a window of 40: 160 are encoded, in groups of 32, as they come in chunks of any size."""
    mx.random.seed(1)
    keys, values = (mx.random.normal((1, 2, 200, 64)).astype(dtype) for _ in "kv")
    queries = mx.random.normal((1, 6, 5, 64)).astype(dtype)
    codec = make_codec(Kivi(bits=4, recent=40))
    old = codec.decode(codec.encode(keys[:, :, :160], values[:, :, :160]))
    want_keys, want_values = (
        np.concatenate([as_float(some), as_float(array[:, :, 160:])], axis=2)
        for some, array in zip(old, (keys, values), strict=True)
    )
    seen = np.arange(200) <= np.arange(195, 200)[:, None]
    want = attention(as_float(queries), want_keys, want_values, 0.125, seen)
    outs = []
    for bounds in ((0, 200), (0, 33, 190, 195, 200)):
        cache = LayerCache(Policy.parse("kivi:bits=4,recent=40"), backend=current())
        for a, b in zip(bounds, bounds[1:], strict=False):
            cache.update_and_fetch(keys[:, :, a:b], values[:, :, a:b])
            out = cache.attend(queries[:, :, -min(5, b - a) :], scale=0.125)
        assert cache.rows.recent.length == 40
        outs.append(as_float(out))
    assert np.array_equal(*outs)
    assert np.abs(outs[0] - want).max() < {mx.float32: 2e-5, mx.bfloat16: 0.02, mx.float16: 0.004}[dtype]


def test_kivi_takes_the_bytes_of_its_bits_and_of_its_window() -> None:
    cache = LayerCache(Policy.parse("kivi:bits=4,v_bits=2"))
    keys, values = (mx.random.normal((1, 2, 2048 + 128, 64)).astype(mx.bfloat16) for _ in "kv")
    cache.update_and_fetch(keys, values)
    mx.eval(cache.state)
    # a step and a least value of 16 bits for 32 numbers are one bit a number
    claimed = 2 * 64 * (2048 * (5 + 3) + 128 * 32) // 8
    assert cache.nbytes == pytest.approx(claimed, rel=0.05)
