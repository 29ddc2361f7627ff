"""Eviction from a prompt that is computed once for all methods: the rows and answers of a prompt of its own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvlab.caches import make_caches
from kvlab.caches.serialize import own_layers
from kvlab.models import LoadedModel

FILE = Path(__file__).parents[2] / "experiments" / "eviction_methods" / "evicted_once.py"
TEXT = "The record of @mira is #4711. The record of @jonas is #1234. " * 9
TOKENS, ANSWER = 160, 12
METHODS = (
    "knorm:budget=0.25", "snapkv:budget=0.5,window=8", "h2o:budget=0.25", "adakv(keydiff):budget=0.5",
    "expected:budget=0.5", "compactor:budget=0.5", "local(keydiff):budget=0.25,block=32",
    "sepllm:separators=1+2,latest=8,budget=0.25", "dms(keydiff):threshold=-0.5,recent=8", "random:budget=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def once() -> Any:
    spec = importlib.util.spec_from_file_location("evicted_once", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokens(bundled: LoadedModel) -> list[int]:
    found = bundled.encode(TEXT)[: TOKENS + ANSWER]
    assert len(found) == TOKENS + ANSWER
    return list(found)


@pytest.mark.parametrize("policy", METHODS)
def test_rows_and_logits_are_those_of_a_prompt_of_its_own(
    once: Any, bundled: LoadedModel, tokens: list[int], policy: str
) -> None:
    prompt, answer = tokens[:TOKENS], tokens[TOKENS:]
    caches, logits = once.evicted(bundled, once.prompt_pass(bundled, prompt), policy)
    alone = make_caches(bundled.model, policy, prompt_tokens=TOKENS, token_ids=lambda: prompt)
    first = bundled.model(mx.array([prompt]), cache=alone)[0, -1]
    for mine, other in zip(own_layers(caches), own_layers(alone), strict=True):
        np.testing.assert_array_equal(np.array(mine.positions()), np.array(other.positions()))
        assert mine.rows.head_lengths == other.rows.head_lengths and mine.length < TOKENS
        other.retention = once.AsEvicted(other.retention)
    mine = once.led(bundled, caches, logits, answer)
    other = once.led(bundled, alone, first, answer)
    np.testing.assert_allclose(np.array(mine), np.array(other), atol=1e-5)


def test_nothing_leaves_behind_the_prompt_and_the_bytes_are_those_of_the_rows_that_stay(
    once: Any, bundled: LoadedModel, tokens: list[int]
) -> None:
    prompt = once.prompt_pass(bundled, tokens[:TOKENS])
    whole = once.kept_bytes(once.evicted(bundled, prompt, "knorm:budget=1.0")[0])
    caches, logits = once.evicted(bundled, prompt, "knorm:budget=0.25")
    assert once.kept_bytes(caches) * 4 == whole
    once.led(bundled, caches, logits, tokens[TOKENS:])
    assert {cache.length for cache in own_layers(caches)} == {TOKENS // 4 + ANSWER - 1}


def test_all_rows_give_the_distributions_of_the_model(once: Any, bundled: LoadedModel, tokens: list[int]) -> None:
    caches, logits = once.evicted(bundled, once.prompt_pass(bundled, tokens[:TOKENS]), "knorm:budget=1.0")
    found = once.led(bundled, caches, logits, tokens[TOKENS:])
    plain = bundled.model(mx.array([tokens[:-1]]))[0, TOKENS - 1 :].astype(mx.float32)
    wanted = plain - mx.logsumexp(plain, axis=-1, keepdims=True)
    np.testing.assert_allclose(np.array(found), np.array(wanted), atol=1e-3)


def test_prompts_side_by_side_are_decoded_as_each_alone(once: Any, bundled: LoadedModel, tokens: list[int]) -> None:
    whole = once.prompt_pass(bundled, tokens[:TOKENS])
    prompt, question = once.first_part(whole, TOKENS - 10), tokens[TOKENS - 10 : TOKENS]
    policies = ("knorm:budget=1.0", "snapkv:budget=0.25,window=8", "adakv(keydiff):budget=0.5")
    answers = once.decoded(bundled, [once.evicted(bundled, prompt, one) for one in policies], question, 8)
    for policy, answer in zip(policies, answers, strict=True):
        caches, _ = once.evicted(bundled, prompt, policy)
        logits = bundled.model(mx.array([question]), cache=caches)[0, -1]
        alone: list[int] = []
        while len(alone) < 8 and (best := int(logits.argmax().item())) not in bundled.eos:
            alone.append(best)
            logits = bundled.model(mx.array([[best]]), cache=caches)[0, -1]
        assert answer == alone and alone, policy
    assert once.decoded(bundled, [(caches, whole.logits)], (), 1)[0] == [int(whole.logits.argmax().item())]
