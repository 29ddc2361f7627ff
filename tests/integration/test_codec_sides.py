"""K and V under codecs of their own: their bytes, their attention, and their keys at rest."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from kvlab.caches import LayerCache
from kvlab.caches.codecs import make_codec
from kvlab.decoder import Decoder
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.policies import Policy, Quantized

KEYS_ONLY = "quantized:bits=8,v_bits=raw"
SIDES = [KEYS_ONLY, "quantized:bits=4,k_bits=raw", "quantized:bits=8,v_bits=4"]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("quantized:bits=8", "quantized"),
        ("quantized:bits=4", "quantized:bits=4"),
        ("quantized:bits=8,v_bits=8", "quantized"),
        ("quantized:bits=2,k_bits=8,v_bits=4", "quantized:v_bits=4"),
        ("quantized:k_bits=4,v_bits=4", "quantized:bits=4"),
        ("quantized:k_bits=raw,v_bits=4", "quantized:bits=4,k_bits=raw"),
        (KEYS_ONLY, "quantized:v_bits=raw"),
    ],
)
def test_equal_choices_of_bits_have_one_spelling(given: str, written: str) -> None:
    policy = Policy.parse(given)
    assert str(policy) == written
    assert Policy.parse(written) == policy


def test_storage_key_differs_by_side_and_stays_what_it_was_for_equal_sides() -> None:
    assert Policy.parse("quantized:bits=8").storage_key == "quantized:bits=8,group=64"
    keys = {Policy.parse(spec).storage_key for spec in ("raw", "quantized", "quantized:k_bits=raw", *SIDES)}
    assert len(keys) == 6


@pytest.mark.parametrize("wrong", ["k_bits=raw,v_bits=raw", "v_bits=3", "k_bits=f16", "bits=3,v_bits=raw"])
def test_bits_that_do_not_exist_are_refused(wrong: str) -> None:
    with pytest.raises(PolicyError, match="quantized: "):
        Policy.parse(f"quantized:{wrong}")


def test_quantized_keys_with_values_of_16_bits_take_77_percent() -> None:
    keys, values = (mx.random.normal((1, 2, 128, 64)).astype(mx.float16) for _ in "kv")
    rows = make_codec(Quantized(bits=8, v_bits="raw")).encode(keys, values)
    # 8 bits, and 16 bits each of scale and bias for 64 channels, beside 16 bits: (8.5 + 16) / 32
    assert sum(array.nbytes for array in rows.values()) / (keys.nbytes + values.nbytes) == pytest.approx(
        0.7656, abs=1e-4
    )
    assert rows["v"] is values


@pytest.mark.parametrize("spec", SIDES)
@pytest.mark.parametrize("count", [1, 16])
def test_attention_reads_each_side_as_it_is_written(spec: str, count: int) -> None:
    codec = Policy.parse(spec).codec
    assert isinstance(codec, Quantized)
    mx.random.seed(1)
    keys, values = mx.random.normal((1, 2, 48, 64)), mx.random.normal((1, 2, 48, 64))
    queries = mx.random.normal((1, 4, count, 64))
    cache = LayerCache(Policy.parse(spec))
    cache.update_and_fetch(keys, values)
    got = np.array(cache.attend(queries, scale=0.125))

    def read(array: mx.array, bits: int | None) -> np.ndarray:
        if bits is None:
            return np.array(array)
        return np.array(mx.dequantize(*mx.quantize(array, group_size=64, bits=bits), group_size=64, bits=bits))

    k, v = (np.repeat(read(one, codec.bits_of(side)), 2, axis=1) for side, one in (("k", keys), ("v", values)))
    scores = np.array(queries) @ k.swapaxes(-1, -2) * 0.125
    at = np.arange(48 - count, 48)[:, None]
    scores = np.where(np.arange(48) <= at, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    assert np.abs(got - weights / weights.sum(-1, keepdims=True) @ v).max() < 2e-5


@pytest.mark.parametrize("spec", SIDES)
def test_sides_of_their_own_are_the_same_alone_in_a_batch_and_restored(bundled: LoadedModel, spec: str) -> None:
    prompts = [bundled.encode("the quick brown fox jumps over the lazy dog " * n) for n in (12, 14)]
    with Decoder(bundled, f"paged|{spec}") as decoder:
        alone = [decoder.generate(prompt, max_tokens=12) for prompt in prompts]
        streams = [decoder.submit(prompt, max_tokens=12) for prompt in prompts]
        again = [stream.result() for stream in streams]
    assert [one.tokens for one in again] == [one.tokens for one in alone]
    assert [one.cached_tokens for one in again] == [len(prompt) - 1 for prompt in prompts]
