"""Many answers of one client do not shut out the next client, and lose no token by that."""

import threading
from typing import Any

import mlx.core as mx
import pytest

from kvlab.decoder import Decoder, Stream, places
from kvlab.recording import events
from tests.integration.test_decoder import Log, conversation, uncached


@pytest.fixture
def impatient(monkeypatch):
    """Places are taken at once: a fast machine ends the answers sooner than a request loses its patience."""
    monkeypatch.setattr(places, "PATIENCE_S", 0)


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
        assert [stream.result().tokens for stream in streams] == want
    assert log.of(events.Finished)[0].request == newcomer.request
    assert log.of(events.Paused)


@pytest.mark.parametrize("policy", ["paged", "quantized|paged"])
def test_places_are_shared_in_the_weights_of_a_mac_too(mac_model, impatient, policy):
    """In 16 bits tokens depend on what is computed beside them: what must hold is that all of them come."""
    many, new = [conversation(seed, 40 + seed) for seed in range(5)], conversation(9, 30)
    log = Log()
    with Decoder(mac_model, policy, recorder=log, max_concurrency=3) as decoder:
        streams, gate = submitted(decoder, many, 3, max_tokens=40, group="many")
        newcomer = decoder.submit(new, max_tokens=3, group="new")
        gate.open()
        assert newcomer.result().finish_reason in ("length", "stop")
        ends = [stream.result() for stream in streams]
    assert log.of(events.Paused)
    assert all(len(end.tokens) == 40 or end.finish_reason == "stop" for end in ends)


def test_first_in_first_out_preempts_no_request_and_keeps_the_order_of_arrival(llama, impatient):
    many, new = [conversation(seed, 40 + seed) for seed in range(4)], conversation(9, 30)
    log = Log()
    with Decoder(llama, "paged", recorder=log, max_concurrency=2, admission="fifo") as decoder:
        streams, gate = submitted(decoder, many, 2, max_tokens=20, group="many")
        newcomer = decoder.submit(new, max_tokens=2, group="new")
        gate.open()
        for stream in (*streams, newcomer):
            stream.result()
    arrived = [stream.request for stream in (*streams, newcomer)]
    assert [event.request for event in log.of(events.Matched)] == arrived
    assert not log.of(events.Paused)


def test_where_nothing_can_be_preempted_a_place_is_kept(llama):
    many, new = [conversation(seed, 40 + seed) for seed in range(9)], conversation(20, 30)
    log = Log()
    with Decoder(llama, "full", recorder=log, max_concurrency=8) as decoder:
        streams, gate = submitted(decoder, many, 7, max_tokens=200, group="many")
        newcomer = decoder.submit(new, max_tokens=2, group="new")
        gate.open()
        assert len(newcomer.result().tokens) == 2
        assert [stream.result().tokens for stream in streams] == uncached(llama, many, 200)
    assert log.of(events.Finished)[0].request == newcomer.request


def test_a_tenant_with_many_requests_leaves_places_to_others(llama, impatient):
    many, new = [conversation(seed, 40 + seed) for seed in range(6)], conversation(20, 30)
    log = Log()
    with Decoder(llama, "paged", recorder=log, max_concurrency=2) as decoder:
        streams, gate = submitted(decoder, many, 2, max_tokens=120, tenant="a")
        newcomer = decoder.submit(new, max_tokens=5, tenant="b")
        gate.open()
        assert len(newcomer.result().tokens) == 5
        assert [stream.result().tokens for stream in streams] == uncached(llama, many, 120)
    assert log.of(events.Finished)[0].request == newcomer.request
