"""Many answers of one client do not shut out the next client, and lose no token by that."""

import threading
from typing import Any

import mlx.core as mx
import pytest

from kvlab.decoder import Decoder, Stream, scheduler
from kvlab.recording import events
from tests.integration.test_decoder import Log, conversation, uncached


@pytest.fixture
def impatient(monkeypatch):
    """Places are taken at once: a fast machine ends the answers sooner than a request loses its patience."""
    monkeypatch.setattr(scheduler, "PATIENCE_S", 0)


class Gate:
    """A logits processor that lets a request decode two tokens, and then halts the decoder until it is opened."""

    def __init__(self) -> None:
        self._steps, self._opened, self.is_reached = 0, threading.Event(), threading.Event()

    def __call__(self, _: mx.array, logits: mx.array) -> mx.array:
        self._steps += 1
        if self._steps > 2:
            self.is_reached.set()
            self._opened.wait(60)
        return logits

    def open(self) -> None:
        self._opened.set()


def submitted(decoder: Decoder, prompts: list[list[int]], halts_at: int, **options: Any) -> tuple[list[Stream], Gate]:
    """Submit requests, and return when the decoder has halted: the first ``halts_at`` hold places."""
    gate = Gate()
    streams = [
        decoder.submit(prompt, logits_processors=[gate] if number == halts_at else [], **options)
        for number, prompt in enumerate(prompts, start=1)
    ]
    assert gate.is_reached.wait(60)
    return streams, gate


@pytest.mark.parametrize("policy", ["paged", "quantized|paged"])
def test_a_newcomer_gets_a_place_of_who_has_most_and_all_tokens_stay_right(llama, impatient, policy):
    many, new = [conversation(seed, 40 + seed) for seed in range(6)], conversation(9, 30)
    with Decoder(llama, policy) as decoder:
        want = [decoder.generate(prompt, max_tokens=120).tokens for prompt in many]
    log = Log()
    with Decoder(llama, policy, recorder=log, max_concurrency=3) as decoder:
        streams, gate = submitted(decoder, many, 3, max_tokens=120, group="many")
        newcomer = decoder.submit(new, max_tokens=5, group="new")
        gate.open()
        assert len(newcomer.result().tokens) == 5
        assert not any(stream.done for stream in streams)
        assert [stream.result().tokens for stream in streams] == want
    assert log.of(events.Paused)


def test_where_nothing_can_be_preempted_a_place_is_kept(llama):
    many, new = [conversation(seed, 40 + seed) for seed in range(9)], conversation(20, 30)
    with Decoder(llama, "full", max_concurrency=8) as decoder:
        streams, gate = submitted(decoder, many, 7, max_tokens=200, group="many")
        newcomer = decoder.submit(new, max_tokens=2, group="new")
        gate.open()
        assert len(newcomer.result().tokens) == 2
        assert not any(stream.done for stream in streams)
        assert [stream.result().tokens for stream in streams] == uncached(llama, many, 200)


def test_a_tenant_with_many_requests_leaves_places_to_others(llama, impatient):
    many, new = [conversation(seed, 40 + seed) for seed in range(6)], conversation(20, 30)
    with Decoder(llama, "paged", max_concurrency=2) as decoder:
        streams, gate = submitted(decoder, many, 2, max_tokens=120, tenant="a")
        newcomer = decoder.submit(new, max_tokens=5, tenant="b")
        gate.open()
        assert len(newcomer.result().tokens) == 5
        assert not all(stream.done for stream in streams[:2])
        assert [stream.result().tokens for stream in streams] == uncached(llama, many, 120)
