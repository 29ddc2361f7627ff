"""Scorers of the literature in live sequences: alone, in batches, in any chunks, and while decoding within a budget.

Class of inputs: every scorer of kvlab, the wrapper among them, in float32 and 16 bits, in prompts longer and shorter
than their parts and windows.
"""

from __future__ import annotations

from collections import defaultdict

import mlx.core as mx
import numpy as np
import pytest

from kvlab.caches import make_caches
from kvlab.decoder import Decoder
from kvlab.errors import PolicyError
from kvlab.models import LoadedModel
from kvlab.recording import events
from tests.conftest import MakeModel
from tests.helpers import Weights
from tests.integration.test_decoder import Log, conversation

PROMPT = conversation(5, 150)
BUDGET, INTERVAL = 40, 4
ROW_BYTES = 2 * 64 * 4
"""A row of one KV head: K and V of 64 channels in float32."""
SCORERS = [
    "keydiff:budget=40,interval=4",
    "tova:budget=40,interval=4",
    "lagkv:budget=40,interval=4,lag=16",
    "cur:budget=40,interval=4",
    "pyramidkv:budget=40,interval=4,window=8,beta=4",
    "h2o:budget=40,interval=4",
    "h2o:budget=40,interval=4,mode=mean,recent=0.25",
    "sepllm:budget=40,interval=4,separators=7+8+9,latest=16",
    "adakv(snapkv:window=8):budget=40,interval=4",
    "adakv(keydiff):budget=40,interval=4",
    "adakv(lagkv:lag=16):budget=40,interval=4",
    "adakv(cur):budget=40,interval=4",
    "adakv(h2o):budget=40,interval=4",
    "expected:budget=40,interval=4,window=16",
    "criticalkv(snapkv:window=8):budget=40,interval=4",
    "criticalkv(expected:value_norm=false):budget=40,interval=4",
    "compactor:budget=40,interval=4,chunk=32",
    "adakv(expected:epsilon=0.01):budget=40,interval=4",
    "adakv(criticalkv(snapkv:window=8)):budget=40,interval=4",
    "adakv(compactor:chunk=32):budget=40,interval=4",
]


def observed(loaded: LoadedModel, policy: str, prompts: list[list[int]], tokens: int, step: int = 512):
    """Return the answers of requests side by side, and the positions that left at each eviction of the first layer."""
    log = Log()
    with Decoder(loaded, policy, recorder=log, prefill_step=step) as decoder:
        streams = [decoder.submit(prompt, max_tokens=tokens) for prompt in prompts]
        answers = [stream.result().tokens for stream in streams]
    gone: dict[int, list[list[list[int]]]] = defaultdict(list)
    for event in log.of(events.Evicted):
        if event.layer == 0:
            gone[event.request].append([sorted(row[row >= 0].tolist()) for row in event.positions])
    return answers, gone


@pytest.mark.parametrize("policy", SCORERS)
def test_a_request_in_a_batch_keeps_and_answers_what_it_does_alone(llama: LoadedModel, policy: str) -> None:
    prompts = [PROMPT, PROMPT[20:], conversation(6, 90)]
    together, gone = observed(llama, policy, prompts, 20)
    for request, prompt in enumerate(prompts):
        [alone], left = observed(llama, policy, [prompt], 20)
        assert together[request] == alone
        assert gone[request] == left[0] and len(left[0]) > 1  # at the end of the prompt, and while decoding


@pytest.mark.parametrize("policy", SCORERS)
def test_what_stays_does_not_depend_on_the_chunks_of_the_prompt(llama: LoadedModel, policy: str) -> None:
    whole, chunked = (observed(llama, policy, [PROMPT], 1, step)[1] for step in (512, 48))
    assert whole and chunked == whole


@pytest.mark.parametrize("policy", SCORERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_decoding_stays_within_the_budget_and_rows_in_their_order(
    make_model: MakeModel, policy: str, dtype: str
) -> None:
    loaded = make_model("qwen3", Weights(dtype))
    known = list(PROMPT)
    caches = make_caches(loaded.model, policy, prompt_tokens=len(PROMPT), token_ids=lambda: known)
    loaded.model(mx.array([PROMPT]), cache=caches)
    average = sum(_held(cache) for cache in caches) / len(caches)
    assert average == BUDGET
    most = [_held(cache) for cache in caches]
    for token in range(10, 40):
        known.append(token)
        loaded.model(mx.array([[token]]), cache=caches)
        mx.eval([cache.state for cache in caches])
        for cache, limit in zip(caches, most, strict=True):
            assert limit - INTERVAL < _held(cache) <= limit
            for row in np.array(cache.positions())[0]:
                assert np.all(np.diff(row[row >= 0]) > 0) and row[-1] < len(known)


def _after_prompt(loaded: LoadedModel, policy: str) -> list:
    caches = make_caches(loaded.model, policy, prompt_tokens=len(PROMPT))
    loaded.model(mx.array([PROMPT]), cache=caches)
    return caches


def _held(cache) -> float:
    """Rows a KV head holds, on average."""
    positions = np.array(cache.positions())[0]
    return float((positions >= 0).sum(axis=1).mean())


@pytest.mark.parametrize("wrapped", ["snapkv:window=8", "keydiff"])
def test_adakv_gives_heads_different_numbers_of_rows_and_frees_the_others(llama: LoadedModel, wrapped: str) -> None:
    caches = _after_prompt(llama, f"adakv({wrapped}):budget=40,alpha=0.1")
    counts = [(np.array(cache.positions())[0] >= 0).sum(axis=1) for cache in caches]
    assert any(count.min() < count.max() for count in counts)
    for cache, count in zip(caches, counts, strict=True):
        assert count.sum() == 2 * BUDGET and cache.length == count.max() < len(PROMPT)
        assert cache.rows.nbytes == 2 * BUDGET * ROW_BYTES
    alone = f"{wrapped}{',' if ':' in wrapped else ':'}budget=40"
    for caches in zip(*(_after_prompt(llama, spec) for spec in (f"adakv({alone}):alpha=1", alone)), strict=True):
        np.testing.assert_array_equal(*(np.array(cache.positions()) for cache in caches))


def test_heads_of_different_lengths_hold_the_bytes_of_their_rows_while_they_decode(llama: LoadedModel) -> None:
    caches = _after_prompt(llama, f"adakv(keydiff):budget={BUDGET},interval={INTERVAL},alpha=0.1")
    for token in conversation(6, 3 * INTERVAL):
        mx.eval(llama.model(mx.array([[token]]), cache=caches))
        for cache in caches:
            assert sum(cache.rows.head_lengths) <= 2 * BUDGET
            assert cache.rows.nbytes <= 2 * (BUDGET + 1) * ROW_BYTES


def test_separators_are_kept_in_the_decoder(llama: LoadedModel) -> None:
    marks = [20, 33, 58, 101]
    prompt = [7 if i in marks else 11 if token == 7 else token for i, token in enumerate(PROMPT)]
    _, gone = observed(llama, "sepllm:budget=20,separators=7,sinks=2,latest=8", [prompt], 1)
    kept = set(range(len(prompt))) - set(gone[0][0][0])
    assert kept == {0, 1, *marks, *range(len(prompt) - 14, len(prompt))}


@pytest.mark.parametrize("budget", ["0.5", "20"])
def test_sepllm_without_separators_is_refused_with_what_to_write(llama: LoadedModel, budget: str) -> None:
    with Decoder(llama, f"sepllm:budget={budget}") as decoder, pytest.raises(PolicyError, match="separators=13"):
        decoder.generate(PROMPT, max_tokens=2)


def test_sepllm_takes_a_share_of_the_prompt(llama: LoadedModel) -> None:
    with Decoder(llama, "sepllm:budget=0.25,separators=7") as decoder:
        assert len(decoder.generate(PROMPT, max_tokens=6).tokens) == 6
