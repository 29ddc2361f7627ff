"""Sequences that stay live after their end, for their next turn."""

from __future__ import annotations

import pytest

from kvlab.decoder import Decoder
from kvlab.errors import KvlabError
from tests.integration.test_decoder import conversation


def talk(decoder: Decoder, seed: int, turns: int, max_tokens: int = 12) -> list[tuple[tuple[int, ...], dict[str, int]]]:
    """Answers and cached tokens by tier of a conversation that grows by 30 tokens a turn."""
    prompt, out = conversation(seed, 200), []
    for turn in range(turns):
        done = decoder.generate(prompt, max_tokens=max_tokens)
        out.append((done.tokens, dict(done.cached_by_tier)))
        prompt = [*prompt, *done.tokens, *conversation(100 * seed + turn, 30)]
    return out


@pytest.mark.parametrize("codec", ["full", "quantized:bits=8"])
def test_the_next_turn_goes_on_from_live_rows_and_says_the_same(llama, codec):
    with Decoder(llama, codec) as decoder:
        want = [tokens for tokens, _ in talk(decoder, 1, 5)]
    with Decoder(llama, f"{codec}|paged") as decoder:
        got = talk(decoder, 1, 5)
    assert [tokens for tokens, _ in got] == want
    for turn, (_, tiers) in enumerate(got[1:], 1):
        assert set(tiers) == {"live"} and tiers["live"] >= 200 + 42 * turn - 31


def test_who_has_been_warm_longest_leaves_first_and_is_restored_from_rest(llama):
    with Decoder(llama, "paged", retain=2) as decoder:
        prompts = [conversation(seed, 150) for seed in range(3)]
        for prompt in prompts:
            decoder.generate(prompt, max_tokens=4)
        tiers = [set(decoder.generate(prompt, max_tokens=4).cached_by_tier) for prompt in reversed(prompts)]
    assert tiers == [{"live"}, {"live"}, {"ram"}]


def test_warm_sequences_and_running_ones_never_exceed_the_concurrency(llama):
    with Decoder(llama, "paged", retain=4, max_concurrency=2) as decoder:
        sizes = []
        for seed in range(4):
            decoder.generate(conversation(seed, 128), max_tokens=4)
            sizes.append(decoder.live_bytes())
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3]


def test_warm_sequences_make_room_when_live_memory_is_short(llama):
    prompts = [conversation(seed, 200) for seed in range(4)]
    with Decoder(llama, "paged", retain=0) as decoder:
        want = [decoder.generate(prompt, max_tokens=8).tokens for prompt in prompts]
    with Decoder(llama, "paged", retain=1) as decoder:
        decoder.generate(prompts[0], max_tokens=8)
        one = decoder.live_bytes()
    with Decoder(llama, "paged", retain=4, live_memory=2 * one) as decoder:
        assert [decoder.generate(prompt, max_tokens=8).tokens for prompt in prompts] == want
        assert 0 < decoder.live_bytes() <= 2 * one


def test_two_that_go_on_from_one_warm_sequence_at_once_both_get_it(llama):
    first = conversation(1, 200)
    forks = [[*first, *conversation(seed, 20)] for seed in (5, 6)]
    with Decoder(llama, "full") as decoder:
        want = [decoder.generate(fork, max_tokens=20).tokens for fork in forks]
    with Decoder(llama, "paged") as decoder:
        decoder.generate(first, max_tokens=2)
        done = [stream.result() for stream in [decoder.submit(fork, max_tokens=20) for fork in forks]]
    assert [one.tokens for one in done] == want
    assert all(one.cached_by_tier.get("live", 0) >= 199 for one in done)


def test_what_is_stored_beyond_the_warm_rows_is_restored_behind_them(llama):
    """The warm sequence was cut back by a shorter retry; the store still has the longer one."""
    long = conversation(1, 300)
    with Decoder(llama, "full") as decoder:
        want = [decoder.generate(prompt, max_tokens=20).tokens for prompt in (long, long[:280])]
    with Decoder(llama, "paged") as decoder:
        first = decoder.generate(long, max_tokens=20)
        retry = decoder.generate(long[:280], max_tokens=20)
        again = decoder.generate(long, max_tokens=20)
    assert [first.tokens, retry.tokens, again.tokens] == [want[0], want[1], want[0]]
    assert set(again.cached_by_tier) == {"live", "ram"}


def test_tenants_do_not_take_over_each_others_rows(llama):
    with Decoder(llama, "paged") as decoder:
        decoder.generate(conversation(1, 150), max_tokens=2, tenant="a")
        assert decoder.generate(conversation(1, 150), max_tokens=2, tenant="b").cached_tokens == 0


def test_warm_below_zero_is_refused(llama):
    with pytest.raises(KvlabError, match="retain"):
        Decoder(llama, "paged", retain=-1)
