"""Requests that come at once behind one new prefix, for models whose layers rest as checkpoints.

The class: the prefix is computed by one of them, and the others wait for its checkpoint, whatever the kind of layer,
however many prefixes there are, and whatever becomes of the one that computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from kvlab.caches import serialize
from kvlab.decoder import Decoder
from kvlab.decoder.prefill.budget import PrefillBudget
from kvlab.recording import events
from tests.lab import STEP, Answer, Lab, Prompt, ask, busy, chat, message, policy
from tests.zoo.builder import small_model

KINDS = ["falcon_h1", "gemma3_text", "jamba", "deepseek_v3", "gemma2", "qwen3"]
"""Recurrent layers; windows of 24 tokens; layers that mlx-lm cannot batch; latent attention; a model that mlx-lm cannot
batch; plain layers."""
SYSTEM = (*message(1, 90), *message(2, 40))
OTHER_SYSTEM = (*message(3, 70), *message(4, 51))
STATEFUL = KINDS[:2]


@pytest.fixture(scope="module")
def labs() -> Callable[[str], Lab]:
    return functools.cache(lambda name: Lab(small_model(name)))


def question(i: int, system: Prompt = SYSTEM) -> Prompt:
    return (*system, *message(10 + i, 5 + 4 * i), *message(7, 12)[:-1])


def cached(answers: list[Answer]) -> list[int]:
    return [answer.completion.cached_tokens for answer in answers]


@pytest.mark.parametrize("name", KINDS)
def test_seven_of_eight_start_from_the_checkpoint_of_the_first(
    labs: Callable[[str], Lab], name: str, tmp_path: Path
) -> None:
    lab, prompts = labs(name), [question(i) for i in range(8)]
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
        answers = ask(decoder, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        lab.same(prompt, answer)
    assert cached(answers) == [0, *[len(SYSTEM)] * 7]


@pytest.mark.parametrize("name", KINDS[:5])
def test_two_prefixes_at_once_are_computed_once_each(labs: Callable[[str], Lab], name: str, tmp_path: Path) -> None:
    lab = labs(name)
    prompts = [question(i, system) for i in range(4) for system in (SYSTEM, OTHER_SYSTEM)]
    with Decoder(lab.loaded, policy(tmp_path, 64), prefill_step=STEP) as decoder:
        answers = ask(decoder, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        lab.same(prompt, answer)
    assert cached(answers) == [0, 0, *[len(SYSTEM), len(OTHER_SYSTEM)] * 3]


@pytest.mark.parametrize("name", STATEFUL)
def test_each_starts_from_the_longest_part_that_it_shares(
    labs: Callable[[str], Lab], name: str, tmp_path: Path
) -> None:
    """All share the system prompt, some also a document behind it, and one shares less than a checkpoint."""
    lab = labs(name)
    document = (*SYSTEM, *message(5, 77))
    apart = (*SYSTEM[:60], *message(6, 40), *message(7, 12)[:-1])
    prompts = [question(0), question(1, document), question(2, document), apart, question(3), question(4, document)]
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
        answers = ask(decoder, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        lab.same(prompt, answer)
    system, whole = len(SYSTEM), len(document)
    assert cached(answers) == [0, system, whole, 0, system, whole]


class When:
    """A recorder that does something once, as soon as one request has computed some of its prompt."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.events: list[events.Event] = []
        self._act: Callable[[int], None] | None = act

    def emit(self, event: events.Event) -> None:
        self.events.append(event)
        if isinstance(event, events.Prefilled) and event.total > len(SYSTEM) and self._act is not None:
            act, self._act = self._act, None
            act(event.request)


@pytest.mark.parametrize("name", KINDS[:4])
def test_when_the_first_is_cancelled_the_others_share_with_one_another(
    labs: Callable[[str], Lab], name: str, tmp_path: Path
) -> None:
    lab, streams = labs(name), {}
    prompts = [question(i, (*message(8, 200), *SYSTEM)) for i in range(6)]
    recorder = When(lambda number: streams[number].cancel())
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=32, recorder=recorder) as decoder:
        with busy(decoder):
            for prompt in prompts:
                stream = decoder.submit(prompt, max_tokens=2)
                streams[stream.request] = stream
        done = [stream.result(timeout=120) for stream in streams.values()]
    assert done[0].finish_reason == "cancelled" and not done[0].tokens
    assert all(one.finish_reason == "length" for one in done[1:])
    assert all(one.cached_tokens >= 330 for one in done[2:])  # the second one starts from what the first had computed


@pytest.mark.parametrize("name", STATEFUL)
def test_when_the_first_fails_the_others_go_on(
    labs: Callable[[str], Lab], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, prompts, state = labs(name), [question(i) for i in range(5)], serialize.checkpoint_state
    failed: list[Any] = []

    def fails_once(caches: Any) -> Any:
        if not failed:
            failed.append(caches)
            raise MemoryError("no room for a checkpoint")
        return state(caches)

    monkeypatch.setattr("kvlab.caches.serialize.checkpoint_state", fails_once)
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
        first = decoder.submit(prompts[0], max_tokens=2)
        others = [decoder.submit(prompt, max_tokens=2) for prompt in prompts[1:]]
        with pytest.raises(MemoryError):
            first.result(timeout=120)
        done = [other.result(timeout=120) for other in others]
    assert [one.cached_tokens for one in done] == [0, *[len(SYSTEM)] * 3]


def test_a_request_that_goes_on_from_its_own_earlier_kv_does_not_wait(
    labs: Callable[[str], Lab], tmp_path: Path
) -> None:
    lab = labs("falcon_h1")
    own = question(0)
    log = When(lambda _: None)
    longer = (*SYSTEM, *message(60, 300), *message(7, 12)[:-1])
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=32, recorder=log) as decoder:
        [before] = ask(decoder, [own])
        turn = (*own, *before.tokens, *message(50, 20), *message(7, 12)[:-1])
        log.events.clear()
        answers = ask(decoder, [longer, turn])
    assert cached(answers) == [len(SYSTEM), len(own) + len(before.tokens)]
    order = [(event.request, type(event)) for event in log.events]
    number = answers[1].completion.request
    last = max(i for i, one in enumerate(order) if one == (answers[0].completion.request, events.Prefilled))
    assert order.index((number, events.Matched)) < last


def test_tenants_do_not_wait_for_one_another(labs: Callable[[str], Lab], tmp_path: Path) -> None:
    lab = labs("falcon_h1")
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
        with busy(decoder):
            streams = [decoder.submit(question(i), max_tokens=2, tenant=f"t{i % 2}") for i in range(4)]
        tokens = [stream.result(timeout=120).cached_tokens for stream in streams]
    assert tokens == [0, 0, len(SYSTEM), len(SYSTEM)]


@pytest.mark.parametrize("name", KINDS[3:5])
def test_without_checkpoints_a_prefix_may_end_at_any_token(
    labs: Callable[[str], Lab], name: str, tmp_path: Path
) -> None:
    """One prompt is the beginning of the others, and one shares a part of its last message only."""
    lab = labs(name)
    first = SYSTEM
    prompts = [first, (*first, *message(11, 20)), first[:100] + message(12, 30), (*first, *message(13, 9))]
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP, retain=0) as decoder:
        answers = ask(decoder, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        lab.same(prompt, answer)
    tokens = cached(answers)
    assert tokens[0] == 0 and tokens[2] == 100
    assert min(tokens[1], tokens[3]) >= len(first) - 1


@pytest.mark.parametrize("name", STATEFUL)
def test_few_places_change_nothing(labs: Callable[[str], Lab], name: str, tmp_path: Path) -> None:
    """With two places, and a prefix that is longer than a prefill step."""
    lab, prompts = labs(name), [question(i, chat(150, 60, seed=9)[:210]) for i in range(5)]
    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP, max_concurrency=2) as decoder:
        answers = ask(decoder, prompts)
    assert cached(answers) == [0, *[210] * 4]


@pytest.mark.parametrize("policy_name", ["full", "paged"])
@pytest.mark.parametrize("name", [*KINDS, "lfm2"])
def test_a_request_that_is_cancelled_before_its_first_chunk_harms_nobody(
    labs: Callable[[str], Lab], name: str, policy_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside decoding sequences, rounds without work on prompts measure the duration of a step."""
    lab = labs(name)
    with Decoder(lab.loaded, policy_name, prefill_step=STEP) as decoder:
        beside = decoder.submit(chat(20), max_tokens=2000, sampler=lambda logits: mx.array([7] * len(logits)))
        tokens = iter(beside)
        next(tokens)
        monkeypatch.setattr(PrefillBudget, "work", lambda _, decoding: 0 if decoding else None)
        stream = decoder.submit(chat(40), max_tokens=2)
        for _ in range(5):
            next(tokens)
        stream.cancel()
        assert stream.result(timeout=60).finish_reason == "cancelled"
        monkeypatch.undo()
        assert decoder.submit(chat(40), max_tokens=2).result(timeout=60).finish_reason == "length"
        beside.cancel()
        beside.result(timeout=60)


def test_an_error_while_cancelling_does_not_end_the_decoder(
    labs: Callable[[str], Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = labs("falcon_h1")

    def fails(*_: Any) -> Any:
        raise MemoryError("no room")

    with Decoder(lab.loaded, policy(tmp_path, 16), prefill_step=STEP) as decoder:
        stream = decoder.submit(chat(20), max_tokens=2000, sampler=lambda logits: mx.array([7] * len(logits)))
        next(iter(stream))
        with monkeypatch.context() as patch:
            patch.setattr("kvlab.caches.serialize.token_rows", fails)
            stream.cancel()
            with pytest.raises(MemoryError):
                stream.result(timeout=60)
        assert decoder.submit(chat(40), max_tokens=2).result(timeout=60).finish_reason == "length"
