"""Sequences that stay live after their end, for their next turn."""

from __future__ import annotations

import pytest

from kvlab.decoder import Decoder
from kvlab.errors import KvlabError
from tests.integration.test_decoder import conversation


def talk(decoder: Decoder, seed: int, turns: int, max_tokens: int = 12) -> list[tuple[tuple[int, ...], dict[str, int]]]:
    """Return answers, and cached tokens by tier, of a conversation that grows by 30 tokens a turn."""
    prompt, out = conversation(seed, 200), []
    for turn in range(turns):
        done = decoder.generate(prompt, max_tokens=max_tokens)
        out.append((done.tokens, dict(done.cached_by_tier)))
        prompt = [*prompt, *done.tokens, *conversation(100 * seed + turn, 30)]
    return out


@pytest.mark.parametrize("codec", ["full", "quantized:bits=8"])
def test_next_turn_continues_from_live_rows_with_the_same_tokens(llama, codec):
    with Decoder(llama, codec) as decoder:
        want = [tokens for tokens, _ in talk(decoder, 1, 5)]
    with Decoder(llama, f"{codec}|paged") as decoder:
        got = talk(decoder, 1, 5)
    assert [tokens for tokens, _ in got] == want
    for turn, (_, tiers) in enumerate(got[1:], 1):
        assert set(tiers) == {"live"} and tiers["live"] >= 200 + 42 * turn - 31


def test_sequence_retained_longest_is_released_first_and_restored_from_the_store(llama):
    with Decoder(llama, "paged", retain=2) as decoder:
        prompts = [conversation(seed, 150) for seed in range(3)]
        for prompt in prompts:
            decoder.generate(prompt, max_tokens=4)
        tiers = [set(decoder.generate(prompt, max_tokens=4).cached_by_tier) for prompt in reversed(prompts)]
    assert tiers == [{"live"}, {"live"}, {"ram"}]


def test_retained_and_running_sequences_never_exceed_max_concurrency(llama):
    with Decoder(llama, "paged", retain=4, max_concurrency=2) as decoder:
        sizes = []
        for seed in range(4):
            decoder.generate(conversation(seed, 128), max_tokens=4)
            sizes.append(decoder.live_bytes())
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3]


def test_retained_sequences_are_released_when_live_memory_is_short(llama):
    prompts = [conversation(seed, 200) for seed in range(4)]
    with Decoder(llama, "paged", retain=0) as decoder:
        want = [decoder.generate(prompt, max_tokens=8).tokens for prompt in prompts]
    with Decoder(llama, "paged", retain=1) as decoder:
        decoder.generate(prompts[0], max_tokens=8)
        one = decoder.live_bytes()
    with Decoder(llama, "paged", retain=4, live_memory=2 * one) as decoder:
        assert [decoder.generate(prompt, max_tokens=8).tokens for prompt in prompts] == want
        assert 0 < decoder.live_bytes() <= 2 * one


def test_two_requests_that_continue_one_retained_sequence_both_reuse_it(llama):
    first = conversation(1, 200)
    forks = [[*first, *conversation(seed, 20)] for seed in (5, 6)]
    with Decoder(llama, "full") as decoder:
        want = [decoder.generate(fork, max_tokens=20).tokens for fork in forks]
    with Decoder(llama, "paged") as decoder:
        decoder.generate(first, max_tokens=2)
        done = [stream.result() for stream in [decoder.submit(fork, max_tokens=20) for fork in forks]]
    assert [one.tokens for one in done] == want
    assert all(one.cached_by_tier.get("live", 0) >= 199 for one in done)


def test_stored_rows_behind_retained_ones_are_restored(llama):
    """A shorter retry took over the retained sequence and cut it; the store still has the longer one."""
    long = conversation(1, 300)
    with Decoder(llama, "full") as decoder:
        want = [decoder.generate(prompt, max_tokens=20).tokens for prompt in (long, long[:280])]
    with Decoder(llama, "paged") as decoder:
        first = decoder.generate(long, max_tokens=20)
        retry = decoder.generate(long[:280], max_tokens=20)
        again = decoder.generate(long, max_tokens=20)
    assert [first.tokens, retry.tokens, again.tokens] == [want[0], want[1], want[0]]
    assert set(again.cached_by_tier) == {"live", "ram"}


def test_tenant_never_takes_over_rows_of_another(llama):
    with Decoder(llama, "paged") as decoder:
        decoder.generate(conversation(1, 150), max_tokens=2, tenant="a")
        assert decoder.generate(conversation(1, 150), max_tokens=2, tenant="b").cached_tokens == 0


def test_negative_retain_is_refused(llama):
    with pytest.raises(KvlabError, match="retain"):
        Decoder(llama, "paged", retain=-1)
