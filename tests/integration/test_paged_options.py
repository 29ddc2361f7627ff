"""Options of ``paged`` in a decoder: cached tokens as other servers count them, and tokens as without a cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlab.decoder import Decoder
from kvlab.decoder.reuse.block_size import block_for_model
from tests.architectures import WINDOW, load_recipe
from tests.lab import Lab, ask, chat, message

BLOCKS = "paged:block=32,match=block,checkpoint=32,live=false"
ANSWER = 4


@pytest.fixture(scope="module", params=["qwen3", "falcon-h1"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(load_recipe(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(load_recipe("qwen3", tmp_path_factory.mktemp("plain")))


def test_whole_blocks_are_reused_and_answers_are_those_of_no_cache(lab: Lab) -> None:
    first = chat(50, 40)
    prompts = [first, first, (*first[:70], *message(9, 40)), first[:25]]
    with Decoder(lab.loaded, BLOCKS) as decoder:
        answers = [ask(decoder, [prompt], ANSWER)[0] for prompt in prompts]
    assert [answer.completion.cached_tokens for answer in answers] == [0, 96, 64, 0]
    assert sum(lab.same(p, a) for p, a in zip(prompts, answers, strict=True)) <= 1


def test_prompts_without_their_replies_are_stored(plain: Lab) -> None:
    prompt = chat(60)
    with Decoder(plain.loaded, "paged:match=tail,reply=false,opening=false,live=false") as decoder:
        first = ask(decoder, [prompt], ANSWER)[0]
        longer = ask(decoder, [(*prompt, *first.tokens, *message(5, 30))], ANSWER)[0]
    assert longer.completion.cached_tokens == len(prompt) - 1


def test_the_hot_sequence_is_found_to_the_token_once(plain: Lab) -> None:
    one, other = chat(100, seed=1), chat(100, seed=2)
    spec = "paged:block=32,match=block,live=false,hot=true"
    with Decoder(plain.loaded, spec) as decoder:
        answers = [ask(decoder, [prompt], ANSWER)[0] for prompt in (one, one, other, one)]
    cached = [answer.completion.cached_tokens for answer in answers]
    assert cached == [0, len(one) - 1, 0, len(one) // 32 * 32], "the other request freed it, and blocks are left"
    assert [dict(answer.completion.cached_by_tier) for answer in answers[1::2]] == [
        {"live": len(one) - 1},
        {"ram": len(one) // 32 * 32},
    ]
    assert sum(plain.same(p, a) for p, a in zip((one, one, other, one), answers, strict=True)) <= 1


def test_the_block_size_follows_the_layers(plain: Lab, tmp_path: Path) -> None:
    assert block_for_model(plain.loaded) == 256
    assert block_for_model(load_recipe("gemma3", tmp_path / "windows")) == -(-512 // WINDOW) * WINDOW
    assert block_for_model(load_recipe("falcon-h1", tmp_path / "recurrent")) == 2048
