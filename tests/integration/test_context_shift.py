"""Sequences beyond their context: moved keys against an independent rotation, tokens against an independent loop."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import KVCache

from kvlab.caches import LayerCache, own_caches
from kvlab.caches.context_shift import ContextShift
from kvlab.decoder import Decoder
from kvlab.errors import KvlabError, ModelError
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.recording.recorder import Recorder
from tests.conftest import MakeModel

CONTEXT, KEEP = 64, 8
SETTINGS: dict[str, Any] = {"context": CONTEXT, "overflow": f"shift:keep={KEEP}"}


def rotate(keys: np.ndarray, by: int, theta: float) -> np.ndarray:
    """Rotate the halves of every key as positions ``by`` further do, in float64."""
    half = keys.shape[-1] // 2
    angle = by * theta ** (-np.arange(half) / half)
    one, two = keys[..., :half].astype(np.float64), keys[..., half:].astype(np.float64)
    turned = (one * np.cos(angle) - two * np.sin(angle), two * np.cos(angle) + one * np.sin(angle))
    return np.concatenate(turned, axis=-1).astype(keys.dtype)


@functools.cache
def prompt_of(count: int) -> list[int]:
    return [5 + (37 * n * n + 11 * n) % 2000 for n in range(count)]


def independent(loaded: LoadedModel, prompt: list[int], count: int) -> tuple[list[int], list[np.ndarray]]:
    """Generate greedily in mlx-lm's own caches, whose rows are dropped and rotated here; keys of the end, too."""
    theta = loaded.model.args.rope_theta
    caches = [KVCache() for _ in loaded.model.layers]
    logits, made = loaded.model(mx.array([prompt]), cache=caches)[0, -1], []
    while True:
        made.append(int(mx.argmax(logits).item()))
        if len(made) == count:
            return made, [np.array(cache.keys[:, :, : cache.offset]) for cache in caches]
        held = caches[0].offset
        if held + 1 >= CONTEXT:
            gone = (held - KEEP) // 2
            for cache in caches:
                keys, values = (np.array(array[:, :, :held]) for array in (cache.keys, cache.values))
                moved = rotate(keys[:, :, KEEP + gone :], -gone, theta)
                cache.keys = mx.array(np.concatenate([keys[:, :, :KEEP], moved], axis=2))
                cache.values = mx.array(np.concatenate([values[:, :, :KEEP], values[:, :, KEEP + gone :]], axis=2))
                cache.offset = held - gone
        logits = loaded.model(mx.array([[made[-1]]]), cache=caches)[0, -1]


def test_moved_keys_are_the_keys_rotated_to_their_new_positions(bundled: LoadedModel) -> None:
    layers: list[LayerCache] = own_caches(bundled.model, Policy())
    bundled.model(mx.array([prompt_of(40)]), cache=layers)
    before = [[np.array(array) for array in layer.rows.decode()] for layer in layers]
    ContextShift(bundled.model, CONTEXT).shift(layers, 8, 12)
    for layer, (keys, values) in zip(layers, before, strict=True):
        got_keys, got_values = (np.array(array) for array in layer.rows.decode())
        wanted = np.concatenate([keys[:, :, :8], rotate(keys[:, :, 20:], -12, 1e8)], axis=2)
        assert np.abs(got_keys - wanted).max() <= 1e-5 * np.abs(wanted).max()
        assert (got_values == np.concatenate([values[:, :, :8], values[:, :, 20:]], axis=2)).all()
        assert (layer.offset, layer.rows.length) == (28, 28)
    # Keys of the first layer depend on token and position alone: they are those of the shorter prompt.
    fresh: list[LayerCache] = own_caches(bundled.model, Policy())
    bundled.model(mx.array([prompt_of(40)[:8] + prompt_of(40)[20:]]), cache=fresh)
    first, wanted = (np.array(caches[0].rows.decode()[0]) for caches in (layers, fresh))
    assert np.abs(first - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("spec", ["full", "paged"])
def test_tokens_beyond_the_context_are_those_of_an_independent_loop(bundled: LoadedModel, spec: str) -> None:
    recorder, prompts = Recorder(), [prompt_of(50), prompt_of(20)[::-1]]
    wanted = [independent(bundled, prompt, 90)[0] for prompt in prompts]
    with Decoder(bundled, spec, recorder=recorder, **SETTINGS) as decoder:
        streams = [decoder.submit(prompt, max_tokens=90) for prompt in prompts]
        done = [stream.result() for stream in streams]
    for one, tokens, prompt in zip(done, wanted, prompts, strict=True):
        ended = next((at for at, token in enumerate(tokens) if token in bundled.eos), len(tokens))
        assert list(one.tokens) == tokens[:ended]
        shifts = recorder.frame("shifted").filter(request=one.request)
        assert shifts["kept"].to_list() == [KEEP] * len(shifts)
        assert shifts["removed"].sum() == one.discarded_tokens
        if ended == len(tokens):
            assert one.finish_reason == "length"
            assert one.discarded_tokens >= len(prompt) + 90 - CONTEXT
    assert recorder.frame("shifted").height > 2


def test_a_shifted_sequence_leaves_nothing_wrong_at_rest(bundled: LoadedModel) -> None:
    with Decoder(bundled, "paged:block=16", **SETTINGS) as decoder:
        first = decoder.generate(prompt_of(50), max_tokens=60)
        again = decoder.generate(prompt_of(50), max_tokens=60)
    assert first.discarded_tokens
    assert again.tokens == first.tokens
    assert again.cached_tokens == 0


def test_quantized_keys_are_moved_and_values_stay_as_they_were_written(bundled: LoadedModel) -> None:
    layers: list[LayerCache] = own_caches(bundled.model, Policy.parse("quantized"))
    bundled.model(mx.array([prompt_of(40)]), cache=layers)
    before = layers[0].rows.used()
    keys = np.array(layers[0].rows.decode()[0])
    ContextShift(bundled.model, CONTEXT).shift(layers, 8, 12)
    after = layers[0].rows.used()
    assert mx.array_equal(after["v.packed"][:, :, 8:], before["v.packed"][:, :, 20:])
    moved = np.array(layers[0].rows.decode()[0])[:, :, 8:]
    assert np.abs(moved - rotate(keys[:, :, 20:], -12, 1e8)).max() < 0.02 * np.abs(keys).max()


def test_answers_end_at_the_context_and_long_prompts_are_refused_or_cut(bundled: LoadedModel) -> None:
    recorder = Recorder()
    with Decoder(bundled, "full", context=CONTEXT) as decoder:
        done = decoder.generate(prompt_of(50), max_tokens=60)
        assert done.finish_reason == "stop" or (done.finish_reason, len(done.tokens)) == ("length", CONTEXT - 50)
        with pytest.raises(KvlabError, match="the prompt has 64 tokens, and the context is 64: shorten it"):
            decoder.submit(prompt_of(64))
    with Decoder(bundled, "full", context=CONTEXT, long_prompt="truncate-middle:keep=4", recorder=recorder) as decoder:
        long = prompt_of(100)
        done = decoder.generate(long, max_tokens=4)
        same = decoder.generate(long[:4] + long[-30:], max_tokens=4)
    assert (done.prompt_tokens, done.cut_tokens) == (34, 66)
    assert done.tokens == same.tokens
    assert recorder.frame("prompt_cut").select("kept", "removed").rows() == [(4, 66)]


@pytest.mark.parametrize(
    ("architecture", "spec", "why"),
    [
        ("gemma3_text", "full", "do not hold a row for every token"),
        ("qwen3", "rotating:window=16", "do not hold a row for every token"),
    ],
)
def test_a_shift_that_cannot_be_exact_is_refused(make_model: MakeModel, architecture: str, spec: str, why: str) -> None:
    with pytest.raises(ModelError, match=f"overflow=shift cannot be used with this model, because .*{why}"):
        Decoder(make_model(architecture, sliding_window=32, sliding_window_pattern=2), spec, **SETTINGS)


def test_a_rope_whose_rotations_do_not_add_up_is_refused(make_model: MakeModel) -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(ModelError, match="rotations of its RoPE do not add up: write overflow=stop"):
        Decoder(make_model("qwen3", rope_scaling=scaled), "full", **SETTINGS)
