"""A server with a context limit: what it cuts, drops, ends and refuses, and how the client learns of it."""

from __future__ import annotations

from typing import Any

from kvlab.decoder.config import DecoderConfig
from kvlab.models import LoadedModel
from tests.server_kit import Local

CONTEXT = 128
PROMPT = [5 + (31 * n * n + 7 * n) % 2000 for n in range(200)]


def ask(server: Local, loaded: LoadedModel, prompt: list[int], answer: int) -> Any:
    endless = {str(token): -100 for token in loaded.eos}
    body = {"model": loaded.name, "prompt": prompt, "max_tokens": answer, "temperature": 0, "logit_bias": endless}
    return server.post("/v1/completions", body, headers={"x-kvlab": "1"})


def test_what_leaves_the_context_is_told_to_the_client(bundled: LoadedModel) -> None:
    config = DecoderConfig(context=CONTEXT, long_prompt="truncate-middle:keep=4", overflow="shift:keep=4")
    with Local("full", bundled, decoder=config) as server:
        answer = ask(server, bundled, PROMPT, 150).json()
        models = server.get("/v1/models").json()["data"]
    assert models[0]["context_window"] == CONTEXT
    left = CONTEXT - (CONTEXT - 4) // 2
    assert answer["usage"]["prompt_tokens"] == left
    assert answer["kvlab"]["cut_tokens"] == len(PROMPT) - left
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (150, "length")
    dropped = answer["kvlab"]["discarded_tokens"]
    # With 127 tokens held and 4 kept, 61 leave at a time.
    assert dropped % 61 == 0 and left + 150 - dropped <= CONTEXT


def test_without_such_rules_a_long_prompt_is_refused_and_an_answer_ends(bundled: LoadedModel) -> None:
    with Local("full", bundled, decoder=DecoderConfig(context=CONTEXT)) as server:
        refused = ask(server, bundled, PROMPT, 10)
        ended = ask(server, bundled, PROMPT[:100], 150).json()
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "the prompt has 200 tokens, and the context is 128: shorten it" in refused.json()["error"]["message"]
    assert (ended["usage"]["completion_tokens"], ended["choices"][0]["finish_reason"]) == (28, "length")
    assert not {"cut_tokens", "discarded_tokens"} & set(ended["kvlab"])
