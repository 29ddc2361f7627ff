"""``rotated``: a Hadamard rotation of each head, then affine quantization."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kvlab.caches.codecs import make_codec
from kvlab.errors import ModelError, PolicyError
from kvlab.policies import Policy, Quantized, Rotated
from tests.codec_reference import as_float, hadamard

TOLERANCE = {mx.float32: 2e-6, mx.bfloat16: 0.03, mx.float16: 0.004}
"""Of one value: the arithmetic of the dtype."""


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("rotated", "rotated"),
        ("rotated:bits=4,v_bits=4", "rotated"),
        ("rotated:bits=2,k_bits=8,v_bits=4", "rotated:bits=8,v_bits=4"),
        ("rotated:k_bits=raw,v_bits=8", "rotated:bits=8,k_bits=raw"),
        ("rotated:v_bits=raw,group=32", "rotated:v_bits=raw,group=32"),
    ],
)
def test_equal_choices_of_rotated_have_one_spelling(given: str, written: str) -> None:
    policy = Policy.parse(given)
    assert str(policy) == written
    assert Policy.parse(written) == policy
    assert policy.storage_key.startswith("rotated:bits=") and not policy.lossless


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("bits=3", "rotated: bits=3 is not available; write bits=2 or bits=4 or bits=8"),
        ("k_bits=f16", "k_bits=f16 is not available"),
        ("k_bits=raw,v_bits=raw", "changes nothing; write raw"),
        ("group=16", "write group=32, group=64 or group=128"),
    ],
)
def test_rotated_refuses_what_it_does_not_have(wrong: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        Policy.parse(f"rotated:{wrong}")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("width", "group", "blocks"), [(64, 64, (64, 64)), (128, 64, (128, 64)), (96, 32, (32, 32))])
def test_rotated_writes_the_hadamard_transform_of_each_block_of_channels(
    dtype: mx.Dtype, width: int, group: int, blocks: tuple[int, int]
) -> None:
    mx.random.seed(0)
    keys, values = (mx.random.normal((1, 2, 8, width)).astype(dtype) for _ in "kv")
    codec = make_codec(Rotated(bits=8, group=group))
    decoded = codec.decode(codec.encode(keys, values))
    for array, block, got in zip((keys, values), blocks, decoded, strict=True):
        turn = np.kron(np.eye(width // block), hadamard(block))
        rotated = mx.array((as_float(array) @ turn).astype(np.float32)).astype(dtype)
        stored = mx.dequantize(*mx.quantize(rotated, group_size=group, bits=8), group_size=group, bits=8)
        assert got.dtype == dtype
        assert np.abs(as_float(got) - as_float(stored) @ turn).max() < TOLERANCE[dtype]


def test_rotation_spreads_outlier_channels_that_plain_quantization_loses_the_others_to() -> None:
    mx.random.seed(0)
    keys = mx.random.normal((1, 2, 256, 64)) * mx.array([30.0] + [1.0] * 63)
    errors = []
    for module in (Quantized(bits=4), Rotated(bits=4)):
        codec = make_codec(module)
        got, _ = codec.decode(codec.encode(keys, keys))
        errors.append(float(mx.mean((got - keys)[..., 1:] ** 2)))
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize(
    ("spec", "bits"), [("rotated", 9), ("rotated:bits=8,v_bits=2", 11), ("rotated:v_bits=raw", 20.5)]
)
def test_rotated_takes_the_bytes_of_its_bits(spec: str, bits: float) -> None:
    keys, values = (mx.random.normal((1, 2, 64, 64)).astype(mx.bfloat16) for _ in "kv")
    rows = make_codec(Policy.parse(spec).codec).encode(keys, values)
    # a scale and a bias of 16 bits for 64 channels are half a bit a value
    assert sum(array.nbytes for array in rows.values()) * 8 / keys.size == bits


def test_rotated_refuses_heads_that_its_group_does_not_divide() -> None:
    rows = mx.zeros((1, 2, 4, 96))
    with pytest.raises(ModelError, match="96 wide, which group=64 does not divide: write rotated:group=32"):
        make_codec(Rotated()).encode(rows, rows)
