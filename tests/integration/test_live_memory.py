"""The live budget: queueing, pausing, refusing, priorities, and what cancelling gives back."""

import random

import numpy as np
import pytest

from kvlab.decoder import Decoder
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.recording import events
from tests.integration.test_decoder import Log, conversation, uncached

BYTES_PER_TOKEN = 2 * 2 * 2 * 64 * 4  # layers, K and V, heads, width, float32


def wanted(prompts: list[list[int]], tokens: int) -> int:
    return sum(len(prompt) + tokens for prompt in prompts) * BYTES_PER_TOKEN


class Peak(Log):
    """A log that also asks the decoder for its live bytes at every token."""

    decoder: Decoder
    most = 0

    def emit(self, event: events.Event) -> None:
        super().emit(event)
        if isinstance(event, events.Token):
            self.most = max(self.most, self.decoder.live_bytes())


@pytest.mark.parametrize("policy", ["paged", "quantized|paged"])
def test_requests_finish_in_a_third_of_their_memory_with_the_same_tokens(llama: LoadedModel, tmp_path, policy):
    prompts = [conversation(seed, 20 + 17 * (seed % 5)) for seed in range(16)]
    codec = policy.partition("|")[0] if "|" in policy else "full"
    with Decoder(llama, codec) as decoder:
        want = [decoder.generate(prompt, max_tokens=150).tokens for prompt in prompts]
    scale = 1 if codec == "full" else 72 / 256
    budget = int(wanted(prompts, 150) * scale / 3)
    log = Peak()
    with Decoder(llama, f"{policy}|tiered:dir={tmp_path}", recorder=log, live_memory=budget) as decoder:
        log.decoder = decoder
        streams = [decoder.submit(prompt, max_tokens=150) for prompt in prompts]
        equal = [stream.result().tokens == tokens for stream, tokens in zip(streams, want, strict=True)]
    # Paused prompts are computed again in other chunks, and a code of 8 bits may then be rounded the other way.
    assert equal.count(False) <= (0 if codec == "full" else 2)
    assert log.of(events.Paused)
    block = 32 * BYTES_PER_TOKEN
    assert budget / 2 < log.most <= budget + block


def test_requests_without_a_store_wait_until_their_whole_length_fits(llama):
    prompts = [conversation(seed, 60) for seed in range(6)]
    log = Peak()
    with Decoder(
        llama, "full", recorder=log, live_memory=3 * (100 + 256) * BYTES_PER_TOKEN
    ) as decoder:  # mlx-lm grows by 256
        log.decoder = decoder
        streams = [decoder.submit(prompt, max_tokens=40) for prompt in prompts]
        assert [stream.result().tokens for stream in streams] == uncached(llama, prompts, 40)
    assert not log.of(events.Paused)
    first_finish = next(i for i, event in enumerate(log.events) if isinstance(event, events.Finished))
    started = {event.request for event in log.events[:first_finish] if isinstance(event, events.FirstToken)}
    assert 0 < len(started) < 6


def test_request_that_can_never_fit_is_refused_with_numbers(llama):
    with Decoder(llama, "paged", live_memory="1MB") as decoder:
        with pytest.raises(KvlabError, match=r"1000 prompt and 50 answer tokens need \d+ bytes.*budget is 1000000"):
            decoder.submit(conversation(1, 1000), max_tokens=50)
        assert decoder.generate(conversation(1, 50), max_tokens=2).finish_reason == "length"


def test_request_of_higher_priority_starts_first(llama):
    log = Log()
    with Decoder(llama, "full", max_concurrency=1, recorder=log) as decoder:
        first = decoder.submit(conversation(0, 20), max_tokens=20)
        next(iter(first))
        streams = [decoder.submit(conversation(i, 20), max_tokens=2, priority=p) for i, p in enumerate((0, 5, 0, 9), 1)]
        for stream in streams:
            stream.result()
    order = [event.request for event in log.of(events.FirstToken)]
    assert order == [0, 4, 2, 1, 3]


def test_random_cancellations_free_all_memory_and_keep_other_answers(llama):
    rng = random.Random(0)
    trunk = conversation(99, 100)
    prompts = [trunk + conversation(seed, rng.randrange(1, 60)) for seed in range(60)]
    stay = set(rng.sample(range(60), 20))
    want = dict(zip(sorted(stay), uncached(llama, [prompts[i] for i in sorted(stay)], 24), strict=True))
    with Decoder(llama, "paged", max_concurrency=16, retain=0) as decoder:
        streams = [decoder.submit(prompt, max_tokens=24) for prompt in prompts]
        gone = [i for i in range(60) if i not in stay]
        rng.shuffle(gone)
        for i in gone:
            if rng.random() < 0.5:
                next(iter(streams[i]), None)
            streams[i].cancel()
        assert {i: streams[i].result().tokens for i in sorted(stay)} == want
        assert all(streams[i].result().finish_reason in ("cancelled", "length", "stop") for i in gone)
        assert decoder.live_bytes() == 0


def test_preempted_request_keeps_its_first_figures(llama):
    prompts = [conversation(seed, 64) for seed in range(8)]
    with Decoder(llama, "paged", live_memory=wanted(prompts, 120) // 3) as decoder:
        completions = [s.result() for s in [decoder.submit(prompt, max_tokens=120) for prompt in prompts]]
    for completion in completions:
        assert completion.prompt_tokens == 64
        assert completion.cached_tokens == 0
        assert len(completion.tokens) == 120 or completion.finish_reason == "stop"
        parts = completion.queue_ms + completion.lookup_ms + completion.restore_ms + completion.prefill_ms
        assert np.isclose(parts, completion.ttft_ms)
