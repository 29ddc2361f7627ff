"""The tokens with which a template opens a user's message, which caches of other servers count to the part before."""

import dataclasses
from types import SimpleNamespace

import pytest

from kvlab.bench.models import random_qwen3
from kvlab.decoder.prefill.user_opening import user_opening
from kvlab.models import load

END, LINE, START, USER, ASSISTANT = range(1, 6)


def written(messages, *, add_generation_prompt, **_):
    """ChatML: a start, the role, a line; the words; an end, a line."""
    roles = {"user": USER, "assistant": ASSISTANT}
    parts = [(START, roles[one["role"]], LINE, 100 + ord(one["content"]), END, LINE) for one in messages]
    return [token for part in parts for token in part]


def template(**changes):
    known = {"eos_token_ids": [END], "has_chat_template": True, "apply_chat_template": written}
    return dataclasses.replace(random_qwen3(layers=1, width=64), tokenizer=SimpleNamespace(**(known | changes)))


def test_the_tokens_between_an_end_and_the_words_are_counted():
    assert user_opening(template()) == 4, "line, start, user, line"


@pytest.mark.parametrize("changes", [{"has_chat_template": False}, {"eos_token_ids": [77]}])
def test_without_a_template_or_ends_there_are_none(changes):
    assert user_opening(template(**changes)) == 0


def test_a_template_that_refuses_turns_counts_none():
    def refuses(messages, **_):
        raise ValueError("no")

    assert user_opening(template(apply_chat_template=refuses)) == 0


def test_the_bundled_model_counts_what_its_own_tokenizer_writes():
    loaded = load()
    words = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    tokens = loaded.render(words, generation=False)
    before = max(at for at, token in enumerate(tokens[:-2]) if token in loaded.eos)
    assert loaded.decode(tokens[before + 1 + user_opening(loaded) :]).startswith("c")
