"""Models whose batch differs from a sequence alone: found out by a trial, and computed one by one.

The class: a model that mlx-lm can batch by the look of its caches, and whose code reads padding as tokens, computes
positions from one sequence's number, or fails for a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import KVCache, make_prompt_cache

from kvlab.caches import batching, batching_trial, make_caches
from kvlab.caches.batching_trial import try_batch
from kvlab.decoder import Decoder
from tests.lab import STEP, Lab, ask, chat, policy
from tests.zoo.builder import small_model

READS_PADDING = ["jamba", "nemotron_h", "recurrent_gemma", "baichuan_m1", "mamba"]
COUNTS_FOR_ONE = ["afm7", "rwkv7", "gpt_bigcode", "gemma2"]
BATCHED = ["qwen3", "falcon_h1", "gemma3_text", "olmo2"]
RAGGED = [chat(60, 30), chat(21), chat(9, 70, seed=3), chat(48, seed=5)]


@pytest.mark.parametrize("name", ["jamba", "recurrent_gemma", "afm7"])
def test_a_ragged_batch_and_a_restart_give_the_answers_of_each_alone(name: str, tmp_path: Path) -> None:
    lab = Lab(small_model(name))
    with Decoder(lab.loaded, "full", prefill_step=STEP) as decoder:
        assert not decoder.batching
        for prompt, answer in zip(RAGGED, ask(decoder, RAGGED), strict=True):
            lab.same(prompt, answer)
    for _ in range(2):  # the second one starts from what the first one stored of its padded batch
        with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
            answers = ask(decoder, RAGGED)
            for prompt, answer in zip(RAGGED, answers, strict=True):
                lab.same(prompt, answer)
    assert all(answer.completion.cached_tokens > 0 for answer in answers)


@pytest.mark.parametrize("name", [*READS_PADDING, *COUNTS_FOR_ONE])
def test_a_model_that_is_wrong_in_a_batch_is_found_out(name: str) -> None:
    model = small_model(name).model
    assert all(hasattr(cache, "merge") for cache in make_prompt_cache(model))
    assert not batching(model)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("name", BATCHED)
def test_a_model_that_is_right_in_a_batch_stays_batched(name: str, dtype: mx.Dtype) -> None:
    assert batching(small_model(name, dtype=dtype).model)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("name", ["jamba", "nemotron_h", "afm7"])
def test_sixteen_bits_do_not_hide_a_wrong_batch(name: str, dtype: mx.Dtype) -> None:
    assert not batching(small_model(name, dtype=dtype).model)


class Rounded(nn.Module):
    """Another model, with products as inexact as those of TF32: 10 bits of mantissa."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        logits = self.inner(inputs, cache=cache)
        return logits * (1 + mx.random.uniform(-1, 1, logits.shape) / 512)


def test_rounding_of_products_decides_nothing() -> None:
    for name, right in (("qwen3", True), ("jamba", False)):
        model = small_model(name).model
        assert bool(try_batch(Rounded(model), lambda model=model: make_prompt_cache(model))) is right


RARE_TOKEN = 37
"""A token of the first sequence of the first trial, and of no other trial's first sequences."""


class Wrong(nn.Module):
    """A model of one attention-like layer, which is wrong in a batch in one way."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.table = mx.random.normal((128, 32), key=mx.random.key(1))

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        x, (layer,) = self.table[inputs][:, None], cache
        before, lone = layer.offset, len(inputs) == 1  # before the cache goes on
        length = inputs.shape[1]
        mask = layer.make_mask(length, return_array=True, window_size=None)
        keys, _ = layer.update_and_fetch(x, x)
        place = mx.array(before).reshape(-1, 1, 1, 1)
        place = 1 + (mx.mean(place) if self.fault == "positions" else place)
        if mask is None or self.fault == "mask" and not lone:
            mask = mx.ones((length, keys.shape[2]), mx.bool_)
        out = place * mx.fast.scaled_dot_product_attention(x, keys, keys, scale=0.03, mask=mask)
        if self.fault == "raises" and not lone:
            raise KeyError("one sequence only")
        if self.fault == "other experts" and not lone and mx.any(inputs == RARE_TOKEN).item():
            return out[:, 0] * 2
        return out[:, 0] if self.fault != "not a number" or lone else out[:, 0] * mx.nan


@pytest.mark.parametrize("fault", ["positions", "mask", "raises", "not a number"])
def test_each_way_to_be_wrong_is_found_out(fault: str) -> None:
    assert try_batch(Wrong(""), lambda: [KVCache()])
    found = try_batch(Wrong(fault), lambda: [KVCache()])
    assert not found
    assert "one by one: " in str(found)


def test_a_difference_that_other_tokens_do_not_show_decides_nothing() -> None:
    """In 16 bits, rounding may send a token to other experts."""
    assert try_batch(Wrong("other experts"), lambda: [KVCache()])
    first = batching_trial._batched(Wrong("other experts"), lambda: [KVCache()], 0)
    alone = batching_trial._alone(Wrong(""), lambda: [KVCache()], 0)
    assert batching_trial._differing(alone, first)


def test_the_trial_runs_once_for_a_model_and_says_so_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded, calls = small_model("jamba"), []
    before = try_batch

    def counted(model: nn.Module, make: Callable[[], Any]) -> Any:
        calls.append(model)
        return before(model, make)

    monkeypatch.setattr("kvlab.caches.factory.try_batch", counted)
    with caplog.at_level(logging.WARNING, "kvlab.caches"):
        for _ in range(3):
            with Decoder(loaded, "full") as decoder:
                assert "padded prefill" in str(decoder.batching)
            make_caches(loaded.model, "full")
    assert len(calls) == 1
    [line] = caplog.messages
    assert "jamba" in line and "one by one" in line


def test_a_trial_gives_the_same_each_time() -> None:
    for name in ("jamba", "afm7"):
        assert str(batching(small_model(name).model)) == str(batching(small_model(name).model))
