"""Servers whose models have chat templates of many families: what agents send is answered, and prompts only grow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kvlab.models import load
from tests.server_kit import Endpoint, Local, Served
from tests.template_kit import FAMILIES, write_model

BY_NAME = {family.name: family for family in FAMILIES}
TOOL = {
    "name": "findbadge",
    "description": "Finds a badge.",
    "parameters": {"type": "object", "properties": {"handle": {"type": "string"}}, "required": ["handle"]},
}
OPENAI_TOOLS = [{"type": "function", "function": TOOL}]
CLAUDE_TOOLS = [{"name": "findbadge", "description": "Finds a badge.", "input_schema": TOOL["parameters"]}]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}


@pytest.fixture(
    scope="module", params=["strict", "mistral_v3", "gemma2", "phi4_mini", "gpt_oss", "deepseek_v3", "llama3", "glm4"]
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    with Local("paged", load(write_model(BY_NAME[request.param], folder, computes=True))) as endpoint:
        yield endpoint


def chat(server: Endpoint, messages: list[Any], **more: Any) -> dict[str, Any]:
    body = {"messages": messages, "max_tokens": 8, **more}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def claude(server: Endpoint, messages: list[Any], **more: Any) -> dict[str, Any]:
    answer = server.post("/v1/messages", {"messages": messages, "max_tokens": 8, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def cached(answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    details = usage.get("prompt_tokens_details")
    return int(details["cached_tokens"] if details else usage["cache_read_input_tokens"])


def test_an_agent_s_conversation_is_answered_and_grows(server: Local) -> None:
    """Lists of parts, two system messages, a late one, foreign ids, an image in a result: with real answers between."""
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is new?"}]},
    ]
    call = {"id": "call_0123456789abcdef01234567", "type": "function"}
    call["function"] = {"name": "findbadge", "arguments": '{"handle":"@mira"}'}
    picture = [{"type": "text", "text": "it is 417"}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    steps: list[list[Any]] = [
        [{"role": "user", "content": "And then?"}],
        [{"role": "system", "content": "Mind the gap."}, {"role": "user", "content": "Go on."}],
        [
            {"role": "user", "content": "Find the badge of @mira."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": picture},
        ],
    ]
    answer = chat(server, messages, tools=OPENAI_TOOLS)
    for more in steps:
        messages = [*messages, _echo(answer), *more]
        later = chat(server, messages, tools=OPENAI_TOOLS)
        assert cached(later) >= answer["usage"]["prompt_tokens"]
        answer = later


def _echo(answer: dict[str, Any]) -> dict[str, Any]:
    message = answer["choices"][0]["message"]
    kept = ("role", "content", "reasoning_content", "tool_calls")
    return {name: message[name] for name in kept if message.get(name)} | {"content": message.get("content") or ""}


def test_claude_s_conversation_is_answered_and_grows(server: Local) -> None:
    system = [{"type": "text", "text": "x-anthropic-billing-header: cch=0;"}, {"type": "text", "text": "Be brief."}]
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Find the badge of @mira."}]}]
    use = {"type": "tool_use", "id": "toolu_01ABC", "name": "findbadge", "input": {"handle": "@mira"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_01ABC", "content": [{"type": "text", "text": "417"}, IMAGE]}
    first = [
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result, {"type": "text", "text": "What is it?"}]},
    ]
    answer = claude(server, messages + first, system=system, tools=CLAUDE_TOOLS)
    system[0]["text"] = "x-anthropic-billing-header: cch=fffff;"
    messages += [*first, {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "Go on."}]
    later = claude(server, messages, system=system, tools=CLAUDE_TOOLS)
    usage = answer["usage"]
    assert cached(later) >= usage["input_tokens"] + usage["cache_read_input_tokens"]


def test_an_answer_is_continued_on_both_endpoints(server: Local) -> None:
    messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one, two,"}]
    one, other = chat(server, messages), claude(server, messages)
    assert one["usage"]["prompt_tokens"] == other["usage"]["input_tokens"] + cached(other)
    assert one["choices"][0]["message"]["content"] == "".join(block.get("text", "") for block in other["content"])
    alone = chat(server, messages[:1])["usage"]["prompt_tokens"]
    assert one["usage"]["prompt_tokens"] > alone


# -- tenants and restarts ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that thinks from its first token on, and whose template leaves thinking out of the history."""
    return write_model(BY_NAME["deepseek_r1"], tmp_path_factory.mktemp("thinker") / "model", computes=True)


QUESTION = [{"role": "user", "content": "The code of @mira is #417. " * 8 + "What is the code of @mira?"}]


def test_a_key_never_gets_another_s_thinking(thinker: Path) -> None:
    keys, admin = ("key-of-anna", "key-of-bert"), "key-of-carl"
    with Local("paged", load(thinker), api_keys=keys, admin_keys=(admin,)) as server:

        def ask(key: str, messages: list[Any]) -> dict[str, Any]:
            body = {"messages": messages, "max_tokens": 24}
            answer = httpx.post(
                f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60
            )
            assert answer.status_code == 200, answer.text
            return answer.json()

        message = ask(keys[0], QUESTION)["choices"][0]["message"]
        assert message["reasoning_content"]
        visible = [
            *QUESTION,
            {"role": "assistant", "content": message["content"] or ""},
            {"role": "user", "content": "And?"},
        ]
        whole = [*QUESTION, _echo({"choices": [{"message": message}]}), {"role": "user", "content": "And?"}]
        for messages in (visible, whole):
            other = ask(keys[1], messages)
            assert cached(other) < other["usage"]["prompt_tokens"]
        own, foreign = ask(keys[0], whole)["usage"], ask(keys[1], whole)["usage"]
        assert own["prompt_tokens"] > foreign["prompt_tokens"]
        metrics = server.get("/metrics", headers={"authorization": f"Bearer {admin}"}).text
        [line] = [
            line for line in metrics.splitlines() if line.startswith("kvlab_answer_bytes{") and 'tier="ram"' in line
        ]
        assert float(line.rpartition(" ")[2]) > 0


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "lost"])
def test_thinking_is_found_again_after_a_kill(thinker: Path, tmp_path: Path, kept: bool) -> None:
    """The next turn after a restart, thinking sent back: all blocks of the turn before are used, thinking included."""
    store, block = tmp_path / "store", 16
    options = ("--policy", f"paged:block={block}|tiered:dir={store},write=through", "--model", str(thinker))
    with Served(*options, home=tmp_path) as server:
        first = chat(server, QUESTION, max_tokens=80)
        server.kill()
    if not kept:
        shutil.rmtree(store / "answers")
    later = [*QUESTION, _echo(first), {"role": "user", "content": "And of @otto?"}]
    with Served(*options, home=tmp_path) as server:
        found = cached(chat(server, later))
    prompt, answer = first["usage"]["prompt_tokens"], first["usage"]["completion_tokens"]
    assert found >= prompt + answer - block if kept else found <= prompt
