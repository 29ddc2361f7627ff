"""Codecs of the literature in the live caches: attention, batches, chunks, stored rows, bytes and peak memory."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvlab.backends import current
from kvlab.caches import LayerCache, make_caches
from kvlab.caches.codecs import make_codec, tiled_attention
from kvlab.decoder import Decoder
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from tests.codec_reference import as_float, attention
from tests.conftest import MakeModel
from tests.helpers import Weights

LIVE = ["rotated", "turboquant:v_bits=3"]
SINGLE_ROWS = [
    *LIVE,
    "rotated:bits=8,v_bits=2,group=32",
    "rotated:k_bits=raw",
    "turboquant:bits=2,v_bits=1,length=norm",
    "turboquant:v_bits=raw,projection=true",
]
"""Codecs that write each row by itself, so that rows can be stored and shared."""
TOLERANCE = {mx.float32: 2e-5, mx.bfloat16: 0.02, mx.float16: 0.004}
SCALE = 0.125
PROMPT = [int(token) for token in np.random.default_rng(0).integers(5, 200, 90)]


def rows_of(count: int, dtype: mx.Dtype, *, heads: int = 2) -> tuple[mx.array, mx.array]:
    keys, values = (mx.random.normal((1, heads, count, 64)).astype(dtype) for _ in "kv")
    return keys, values


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of few rows and queries, so that short sequences have several."""
    monkeypatch.setattr(tiled_attention, "TILE_ROWS", 48)
    monkeypatch.setattr(tiled_attention, "TILE_QUERIES", 40)


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spec", SINGLE_ROWS)
def test_attention_in_tiles_is_that_over_the_decoded_rows(spec: str, dtype: mx.Dtype) -> None:
    mx.random.seed(0)
    codec = make_codec(Policy.parse(spec).codec)
    own, prefix = (codec.encode(*rows_of(count, dtype)) for count in (110, 70))
    for count, segments, has_sinks in (
        (1, [own], False),
        (3, [own], True),
        (110, [own], False),
        (50, [prefix, own], True),
    ):
        queries = mx.random.normal((1, 6, count, 64)).astype(dtype)
        sinks = mx.random.normal((6,)).astype(dtype) if has_sinks else None
        keys, values = (mx.concatenate(side, axis=2) for side in zip(*map(codec.decode, segments), strict=True))
        length = keys.shape[2]
        causal = np.arange(length) <= np.arange(length - count, length)[:, None]
        some = np.random.default_rng(0).random((1, 6, count, 110)) > 0.3
        padded = np.concatenate([np.ones((1, 6, count, length - 110), bool), some], axis=-1)
        for mask, seen in ((None if count == 1 else "causal", causal), (mx.array(some), padded)):
            got = codec.attend(current(), queries, segments, SCALE, mask, sinks)
            want = attention(
                as_float(queries),
                as_float(keys),
                as_float(values),
                SCALE,
                seen,
                None if sinks is None else as_float(sinks),
            )
            assert got.dtype == dtype and got.shape == queries.shape
            assert np.abs(as_float(got) - want).max() < TOLERANCE[dtype]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("spec", SINGLE_ROWS)
def test_products_with_encoded_rows_are_those_with_decoded_ones(spec: str) -> None:
    mx.random.seed(0)
    codec = make_codec(Policy.parse(spec).codec)
    rows = codec.encode(*rows_of(100, mx.float32))
    keys, values = codec.decode(rows)
    queries, weights = mx.random.normal((1, 2, 5, 64)), mx.softmax(mx.random.normal((1, 2, 5, 100)), axis=-1)
    assert mx.abs(codec.scores(queries, rows) - queries @ keys.swapaxes(-1, -2)).max().item() < 1e-4
    assert mx.abs(codec.mix(weights, rows) - weights @ values).max().item() < 1e-5


@pytest.mark.parametrize("spec", SINGLE_ROWS)
def test_rows_that_are_cut_and_joined_are_those_that_were_encoded_together(spec: str) -> None:
    """Each row is written by itself; a product over more rows may round a coordinate to the next step."""
    mx.random.seed(0)
    codec = make_codec(Policy.parse(spec).codec)
    keys, values = rows_of(96, mx.float32)
    whole = codec.decode(codec.encode(keys, values))
    parts = [codec.encode(keys[:, :, a:b], values[:, :, a:b]) for a, b in pairwise((0, 1, 33, 96))]
    joined = codec.decode({name: mx.concatenate([part[name] for part in parts], axis=2) for name in parts[0]})
    for one, other in zip(whole, joined, strict=True):
        assert np.mean(np.abs(np.array(one) - np.array(other)) > 1e-5) < 1e-3


# -- the live caches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", LIVE)
def test_codecs_of_papers_answer_alike_alone_in_a_batch_and_from_shared_prefixes(
    bundled: LoadedModel, spec: str
) -> None:
    prompts = [bundled.encode("the quick brown fox jumps over the lazy dog " * n) for n in (12, 14)]
    with Decoder(bundled, f"paged|{spec}") as decoder:
        alone = [decoder.generate(prompt, max_tokens=12) for prompt in prompts]
        streams = [decoder.submit(prompt, max_tokens=12) for prompt in prompts]
        again = [stream.result() for stream in streams]
    assert [one.tokens for one in again] == [one.tokens for one in alone]
    assert [one.cached_tokens for one in again] == [len(prompt) - 1 for prompt in prompts]


@pytest.mark.parametrize(("spec", "retention"), [(LIVE[0], "snapkv:budget=50"), (LIVE[1], "knorm:budget=0.5")])
def test_codecs_of_papers_answer_alike_behind_evictions_and_with_reuse(
    llama: LoadedModel, tmp_path: Path, spec: str, retention: str
) -> None:
    prompts = [PROMPT, [*PROMPT, *PROMPT[5:40]], PROMPT[10:]]
    with Decoder(llama, f"{retention}|{spec}") as decoder:
        want = [decoder.generate(prompt, max_tokens=12).tokens for prompt in prompts]
    with Decoder(llama, f"{retention}|{spec}|tiered:dir={tmp_path}") as decoder:
        assert [decoder.generate(prompt, max_tokens=12).tokens for prompt in prompts] == want
        completions = [stream.result() for stream in [decoder.submit(p, max_tokens=12) for p in prompts]]
    assert [completion.tokens for completion in completions] == want
    assert all(completion.cached_tokens for completion in completions)


def test_layers_at_the_boundary_stay_exact_and_are_shared_and_restored_beside_the_others(
    bundled: LoadedModel, tmp_path: Path
) -> None:
    spec = "turboquant:bits=2,boundary=1"
    caches = make_caches(bundled.model, spec)
    assert [cache.codec.is_exact for cache in caches] == [True, False, False, True]
    prompt = bundled.encode("the quick brown fox jumps over the lazy dog " * 12)
    answers = []
    for _ in range(2):
        with Decoder(bundled, f"{spec}|tiered:dir={tmp_path}", retain=0) as decoder:
            streams = [decoder.submit(prompt, max_tokens=12) for _ in range(2)]
            answers += [stream.result() for stream in streams]
    assert len({tuple(answer.tokens) for answer in answers}) == 1
    assert all(answer.cached_tokens for answer in answers[1:])


def test_kivi_answers_alike_alone_and_in_a_batch(bundled: LoadedModel) -> None:
    prompts = [bundled.encode("the quick brown fox jumps over the lazy dog " * n) for n in (12, 14)]
    with Decoder(bundled, "kivi:recent=16") as decoder:
        alone = [decoder.generate(prompt, max_tokens=12).tokens for prompt in prompts]
        streams = [decoder.submit(prompt, max_tokens=12) for prompt in prompts]
        assert [stream.result().tokens for stream in streams] == alone


@pytest.mark.parametrize(("spec", "weights"), [(LIVE[0], Weights("bfloat16")), (LIVE[1], Weights("float16"))], ids=str)
def test_codecs_of_papers_answer_alike_from_every_tier(
    make_model: MakeModel, tmp_path: Path, spec: str, weights: Weights
) -> None:
    loaded = make_model("qwen3", weights)
    answers = []
    for _ in range(2):
        with Decoder(loaded, f"{spec}|tiered:dir={tmp_path}", retain=0) as decoder:
            answers += [decoder.generate(PROMPT, max_tokens=12) for _ in range(2)]
    assert [set(answer.cached_by_tier) for answer in answers] == [set(), {"ram"}, {"ssd"}, {"ssd"}]
    assert len({tuple(answer.tokens) for answer in answers}) == 1


@pytest.mark.parametrize("spec", LIVE)
def test_codecs_of_papers_answer_alike_for_any_chunking_of_the_prompt(llama: LoadedModel, spec: str) -> None:
    def logits(*chunks: int) -> np.ndarray:
        caches = make_caches(llama.model, spec, prompt_tokens=len(PROMPT))
        for a, b in pairwise((0, *chunks, len(PROMPT))):
            out = llama.model(mx.array([PROMPT[a:b]]), cache=caches)
        return np.array(out[0, -1].astype(mx.float32))

    whole = logits()
    assert np.abs(logits(1, 40, 41) - whole).max() < 0.05 * np.abs(whole).max()


# -- memory -----------------------------------------------------------------------------------------------------------

LAYERS, LENGTH, HEADS = 16, 8192, 2


@pytest.mark.parametrize(
    ("spec", "bits"),
    [("rotated", 9.0), ("turboquant", 8.5), ("quantized:bits=4", 9.0), ("kivi:bits=4,group=64,recent=64", 9.0)],
)
def test_live_bytes_are_those_of_the_bits_and_attention_takes_a_quarter_more_at_most(spec: str, bits: float) -> None:
    """Over a cache of 8,192 tokens in 16 bits, layer by layer; scores and outputs are the activations.

    Args:
        bits: of K and V together, a channel, with scales.
    """
    backend = current()
    caches = [LayerCache(Policy.parse(spec)) for _ in range(LAYERS)]
    rows = rows_of(1024, mx.bfloat16, heads=HEADS)
    for cache in caches:
        for _ in range(LENGTH // 1024):
            cache.rows.append(*rows)
        mx.eval(cache.state)
    claimed = LAYERS * HEADS * LENGTH * 64 * bits / 8
    held = sum(cache.nbytes for cache in caches)
    assert held == pytest.approx(claimed, rel=0.05)
    for count, rows_of_scores in ((1, LENGTH), (16, tiled_attention.TILE_ROWS)):
        queries = mx.random.normal((1, 4, count, 64)).astype(mx.bfloat16)
        mx.eval(queries)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        for cache in caches:
            mask = None if count == 1 else "causal"
            mx.eval(cache.rows.attend(backend, queries, (), SCALE, mask, None))
        activations = 4 * 4 * count * rows_of_scores * 3  # scores, their exponentials and a mask, of 4 heads in float32
        assert mx.get_peak_memory() - before < 0.25 * held + activations
