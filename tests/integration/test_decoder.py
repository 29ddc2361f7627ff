"""The decoder: exactness of lossless policies, joining and leaving, cancelling, restarts, events."""

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest

from kvlab.decoder import Decoder
from kvlab.errors import KvlabError
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.recording import events

LENGTHS = (60, 130, 7, 210, 90, 33, 170, 1)


class Log:
    """A recorder that keeps events in a list."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def emit(self, event: events.Event) -> None:
        self.events.append(event)

    def of(self, kind: type[events.Event]) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def conversation(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(5, 250, length).tolist()


def uncached(loaded: LoadedModel, prompts: list[list[int]], tokens: int = 16) -> list[tuple[int, ...]]:
    """Greedy tokens of each prompt alone under ``full``."""
    with Decoder(loaded, "full") as decoder:
        return [decoder.generate(prompt, max_tokens=tokens).tokens for prompt in prompts]


def turns(loaded: LoadedModel, seed: int, length: int, count: int = 3) -> list[list[int]]:
    """Prompts of a conversation: each holds the one before, the model's uncached answer, and new tokens."""
    prompts = [conversation(seed, length)]
    while len(prompts) < count:
        [answer] = uncached(loaded, prompts[-1:])
        prompts.append([*prompts[-1], *answer, *conversation(seed + 100 * len(prompts), 11)])
    return prompts


def policies(folder: Path) -> list[str]:
    return ["full", "paged:block=16", "paged:block=64", f"tiered:dir={folder / 'store'}"]


def test_lossless_policies_give_the_tokens_of_no_cache_alone(random_weights, tmp_path):
    prompts = [prompt for seed in (1, 2) for prompt in turns(random_weights, seed, 100)]
    want = uncached(random_weights, prompts)
    for policy in policies(tmp_path):
        with Decoder(random_weights, policy) as decoder:
            assert [decoder.generate(prompt, max_tokens=16).tokens for prompt in prompts] == want, policy


def test_lossless_policies_give_the_tokens_of_no_cache_in_a_ragged_batch(random_weights, tmp_path):
    prompts = [prompt for seed, length in enumerate(LENGTHS) for prompt in turns(random_weights, seed, length, 2)]
    limits = [3 + 5 * (i % 4) for i in range(len(prompts))]
    want = [answer[:limit] for answer, limit in zip(uncached(random_weights, prompts, 18), limits, strict=True)]
    for policy in policies(tmp_path):
        with Decoder(random_weights, policy, max_concurrency=8, prefill_step=64) as decoder:
            # More requests than places: as short answers leave, later requests join in mid-decode.
            streams = [decoder.submit(prompt, max_tokens=limit) for prompt, limit in zip(prompts, limits, strict=True)]
            assert [stream.result().tokens for stream in streams] == want, policy


def test_tiered_reuses_blocks_after_a_restart(random_weights, tmp_path):
    prompts = turns(random_weights, 7, 150)
    want = uncached(random_weights, prompts)
    policy = f"tiered:dir={tmp_path / 'store'}"
    with Decoder(random_weights, policy) as decoder:
        assert [decoder.generate(prompt, max_tokens=16).tokens for prompt in prompts[:2]] == want[:2]
    with Decoder(random_weights, policy) as decoder:
        again = decoder.generate(prompts[2], max_tokens=16)
    assert again.tokens == want[2]
    # All of the earlier prompt and answer is there, but for the last token, which was sampled and never computed.
    assert again.cached_tokens >= len(prompts[1]) + 15
    assert set(again.cached_by_tier) == {"ssd"}


@pytest.mark.parametrize("codec", ["raw", "quantized", "quantized:bits=4"])
@pytest.mark.parametrize(
    "retention", ["full", "rotating:window=40", "knorm:budget=0.5", "snapkv:budget=50", "random:budget=30"]
)
@pytest.mark.parametrize("reuse", ["none", "paged", "tiered"])
def test_legal_combinations_of_modules_reuse_no_wrong_rows(llama, tmp_path, retention, codec, reuse):
    """With and without reuse a policy gives the same tokens, alone and in a batch: what rests is what it computes."""
    tiers = f"paged|tiered:dir={tmp_path / 'store'}" if reuse == "tiered" else reuse
    spec = f"{retention}|{codec}|{tiers}"
    if retention.startswith("rotating") and reuse != "none":
        with pytest.raises(KvlabError, match="drops rows"):
            Policy.parse(spec)
        return
    prompts = [prompt for seed in (3, 4) for prompt in turns(llama, seed, 90, 2)]
    with Decoder(llama, f"{retention}|{codec}") as decoder:
        want = [decoder.generate(prompt, max_tokens=12).tokens for prompt in prompts]
    with Decoder(llama, spec) as decoder:
        assert [decoder.generate(prompt, max_tokens=12).tokens for prompt in prompts] == want
        completions = [stream.result() for stream in [decoder.submit(p, max_tokens=12) for p in prompts]]
    assert [completion.tokens for completion in completions] == want
    assert all((completion.cached_tokens > 0) == (reuse != "none") for completion in completions)


def test_lossy_blocks_are_never_handed_to_another_policy(llama, tmp_path):
    folder = tmp_path / "store"
    prompt = conversation(5, 200)
    [want] = uncached(llama, [prompt])
    with Decoder(llama, f"quantized:bits=2|tiered:dir={folder}") as decoder:
        decoder.generate(prompt, max_tokens=4)
    with Decoder(llama, f"tiered:dir={folder}") as decoder:
        completion = decoder.generate(prompt, max_tokens=16)
    assert (completion.cached_tokens, completion.miss, completion.tokens) == (0, "other_policy", want)


def test_tenants_never_share_blocks(llama):
    prompt = conversation(5, 100)
    with Decoder(llama, "paged") as decoder:
        decoder.generate(prompt, max_tokens=2, tenant="a")
        assert decoder.generate(prompt, max_tokens=2, tenant="b").cached_tokens == 0
        assert decoder.generate(prompt, max_tokens=2, tenant="a").cached_tokens == 99


def test_cancelling_frees_memory_stores_computed_kv_and_keeps_other_answers(llama):
    prompts = [conversation(seed, 150) for seed in range(4)]
    want = uncached(llama, prompts, 60)
    with Decoder(llama, "paged", prefill_step=32, retain=0) as decoder:
        streams = [decoder.submit(prompt, max_tokens=60) for prompt in prompts]
        next(iter(streams[1]))
        streams[1].cancel()
        streams[1].cancel()
        assert streams[1].result().finish_reason == "cancelled"
        assert [streams[i].result().tokens for i in (0, 2, 3)] == [want[i] for i in (0, 2, 3)]
        assert decoder.live_bytes() == 0
        assert decoder.generate(prompts[1], max_tokens=60).cached_tokens == 149


def test_cancelled_prefill_stores_its_computed_kv(llama):
    prompt = conversation(1, 4000)
    log = Log()
    with Decoder(llama, "paged", prefill_step=64, recorder=log) as decoder:
        stream = decoder.submit(prompt)
        while not log.of(events.Prefilled):
            pass
        stream.cancel()
        assert stream.result().tokens == ()
        done = log.of(events.Prefilled)[-1].done
        assert decoder.generate(prompt, max_tokens=1).cached_tokens == done > 0


def test_closing_cancels_running_requests(llama):
    decoder = Decoder(llama, "paged")
    streams = [decoder.submit(conversation(seed, 50), max_tokens=10_000) for seed in range(3)]
    next(iter(streams[0]))
    decoder.close()
    decoder.close()
    assert [stream.result().finish_reason for stream in streams] == ["cancelled"] * 3
    with pytest.raises(KvlabError, match="closed"):
        decoder.submit([1])


def test_stream_yields_tokens_as_they_come_on_any_thread(llama):
    with Decoder(llama, "full") as decoder:
        got: dict[int, list[int]] = {}

        def client(seed: int) -> None:
            got[seed] = list(decoder.submit(conversation(seed, 40), max_tokens=10))

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [tuple(got[seed]) for seed in range(6)] == uncached(llama, [conversation(s, 40) for s in range(6)], 10)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_shortest_prompts_in_one_batch_give_the_tokens_of_no_cache(llama, length):
    prompts = [conversation(seed, length) for seed in range(3)]
    with Decoder(llama, "paged") as decoder:
        streams = [decoder.submit(prompt, max_tokens=5) for prompt in prompts]
        assert [stream.result().tokens for stream in streams] == uncached(llama, prompts, 5)


def test_samplers_processors_and_stop_sequences(llama):
    prompt = conversation(2, 30)
    [want] = uncached(llama, [prompt])
    with Decoder(llama, "full") as decoder:
        stopped = decoder.generate(prompt, max_tokens=16, stop=[list(want[3:5])])
        assert stopped.finish_reason == "stop"
        assert stopped.tokens == want[:5]
        forced = decoder.generate(prompt, max_tokens=3, sampler=lambda logprobs: logprobs[:, :9].argmin(-1) * 0 + 7)
        assert forced.tokens == (7, 7, 7)


def test_failing_request_does_not_end_others(llama):
    def broken(_tokens, _logits):
        raise RuntimeError("this processor is broken")

    with Decoder(llama, "paged") as decoder:
        with pytest.raises(RuntimeError, match="broken"):
            decoder.generate(conversation(1, 20), logits_processors=[broken])
        assert decoder.generate(conversation(1, 20), max_tokens=3).finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "no tokens"),
        ([1], {"max_tokens": 0}, "1 or more"),
        ([-5], {}, "vocabulary"),
        ([10**6], {}, "vocabulary"),
    ],
)
def test_bad_request_is_refused_by_submit(llama, prompt, options, words):
    with Decoder(llama, "full") as decoder, pytest.raises(KvlabError, match=words):
        decoder.submit(prompt, **options)


def test_store_writes_in_the_background_while_the_decoder_computes(llama, tmp_path, monkeypatch):
    told: list[bool] = []
    with Decoder(llama, f"tiered:dir={tmp_path}") as decoder:
        monkeypatch.setattr(decoder.store, "set_background_priority", told.append)
        for seed in range(2):
            decoder.generate(conversation(seed, 40), max_tokens=3)
    changes = [active for active, _ in itertools.groupby([False, *told])]  # it may have been idle before it was watched
    assert changes == [False, True, False, True, False]


def test_write_through_blocks_are_on_disk_when_the_request_ends(llama, tmp_path):
    with Decoder(llama, f"tiered:write=through,dir={tmp_path}") as decoder:
        decoder.generate(conversation(1, 200), max_tokens=3)
        stats = decoder.store.stats()
        assert stats["ssd_blocks"] == 202 // decoder.policy.reuse.block


def test_events_report_each_phase_of_a_request(llama, tmp_path):
    log = Log()
    prompt = conversation(3, 100)
    with Decoder(
        llama, "snapkv:budget=40,window=8|tiered:dir=" + str(tmp_path / "s"), recorder=log, prefill_step=32
    ) as decoder:
        completion = decoder.generate(prompt, max_tokens=30, tags={"turn": 1})
        decoder.generate(prompt, max_tokens=2)
    first = [event for event in log.events if event.request == completion.request]
    kinds = [type(event).__name__ for event in first]
    assert kinds[:4] == ["Submitted", "Chained", "Matched", "Prefilled"]
    assert kinds[-1] == "Finished"
    assert log.of(events.Submitted)[0].tags == {"turn": 1}
    assert log.of(events.Matched)[0].miss == "never_seen"
    assert log.of(events.Prefilled)[-1].total == 100 - 92 or log.of(events.Prefilled)[0].total == 100
    assert [event.step for event in first if isinstance(event, events.Token)] == list(range(1, 30))
    dropped = [event for event in first if isinstance(event, events.Evicted)]
    assert {event.layer for event in dropped} == {0, 1}
    at_prompt = [event for event in dropped if event.step == 0]
    assert [event.positions.shape for event in at_prompt] == [(2, 60), (2, 60)]
    assert any(event.step > 0 for event in dropped)
    assert log.of(events.Stored)[0].bytes > 0
    assert log.of(events.Restored)[0].tokens == 92
    assert all(a.t <= b.t for a, b in zip(first, first[1:], strict=False))


@pytest.mark.parametrize("codec", ["raw", "quantized:bits=8"])
def test_live_sequences_that_share_prefixes_give_the_tokens_of_no_cache(random_weights, codec):
    """A tree: all share 150 tokens, half of them 80 more; they arrive at once and later, and leave in any order."""
    trunk, branch = conversation(1, 150), conversation(2, 80)
    prompts = [trunk + (branch if seed % 2 else []) + conversation(10 + seed, 5 + 9 * seed) for seed in range(10)]
    limits = [6 + 7 * (seed % 3) for seed in range(10)]
    with Decoder(random_weights, codec) as decoder:
        want = [decoder.generate(p, max_tokens=n).tokens for p, n in zip(prompts, limits, strict=True)]
    with Decoder(random_weights, f"{codec}|paged", max_concurrency=6, retain=0) as decoder:
        streams = [decoder.submit(p, max_tokens=n) for p, n in zip(prompts, limits, strict=True)]
        completions = [stream.result() for stream in streams]
        assert decoder.live_bytes() == 0
    assert [completion.tokens for completion in completions] == want
    assert completions[0].cached_tokens == 0
    # Every later one waited for the prefix and took it from a live sequence, at least as far as the trunk goes.
    assert all(completion.cached_by_tier.get("live", 0) >= 150 for completion in completions[1:6])
