"""Schemas over HTTP: tools beside a response format, and other clients while a costly schema is compiled."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.server_kit import Served, chat

CHAT = "/v1/chat/completions"
TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {"type": "dict", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]},
    },
}
FORM = {
    "type": "object",
    "properties": {"answer": {"type": "boolean"}, "why": {"enum": ["a", "b"]}},
    "required": ["answer", "why"],
    "additionalProperties": False,
}
CHATS_WITHIN = 3
"""Whole chats between the start and the end of one compilation: none could be, if it held up the event loop."""
SECONDS = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Served]:
    with Served("--policy", "full", home=tmp_path_factory.mktemp("home")) as served:
        yield served


def response_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}


def answered(server: Served, stream: bool, **fields: Any) -> tuple[str, list[tuple[str, str]], str]:
    """Content, calls and finish reason of one answer."""
    body = chat("Go.", tools=[TOOL], response_format=response_format(FORM), max_tokens=120, stream=stream, **fields)
    got = server.post(CHAT, body)
    assert got.status_code == 200, got.text
    if not stream:
        [choice] = got.json()["choices"]
        calls = choice["message"].get("tool_calls") or []
        named = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
        return choice["message"]["content"] or "", named, choice["finish_reason"]
    content, reason, parts = "", "", {}
    for line in got.text.splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            content += choice["delta"].get("content") or ""
            reason = choice.get("finish_reason") or reason
            for part in choice["delta"].get("tool_calls") or []:
                call = parts.setdefault(part["index"], ["", ""])
                call[0] += part["function"].get("name") or ""
                call[1] += part["function"].get("arguments") or ""
    return content, [(name, arguments) for name, arguments in parts.values()], reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_tools_with_a_response_format_give_a_call_or_json(server, bundled, choice, stream):
    """Class: each tool choice, streamed and not, by a model that wants to call, to write JSON, or neither."""
    marker, brace = bundled.encode("<tool_call>")[0], bundled.encode("{")[0]
    seen = set()
    for bias in ({str(marker): 30}, {str(brace): 30, str(marker): -30}, {str(brace): -30}, {}):
        for seed in (1, 2):
            content, calls, reason = answered(
                server, stream, tool_choice=choice, logit_bias=bias, seed=seed, temperature=1.5
            )
            if calls:
                assert reason == "tool_calls" and not content.strip(), (content, calls)
                for name, arguments in calls:
                    assert name == "search"
                    jsonschema.validate(json.loads(arguments), {**TOOL["function"]["parameters"], "type": "object"})
            else:
                assert reason == "stop", (reason, content)
                jsonschema.validate(json.loads(content), FORM)
            seen.add("call" if calls else "JSON")
    assert seen == {"auto": {"call", "JSON"}, "none": {"JSON"}}[choice]


def test_a_required_call_beside_a_response_format_is_refused_in_words(server):
    body = chat("Go.", tools=[TOOL], tool_choice="required", response_format=response_format(FORM))
    got = server.post(CHAT, body)
    assert got.status_code == 400 and "send one of them" in got.json()["error"]["message"]


def costly(number: int) -> dict[str, Any]:
    """A request whose schema takes long to compile; each number has a schema of its own."""
    names = {f"p{number}_{i}": {"type": "string", "pattern": f"^([a-z]{{1,9}}{i}){{1,60}}$"} for i in range(200)}
    return chat("json", response_format=response_format({"type": "object", "properties": names}), max_tokens=1)


def test_chats_of_others_go_on_while_a_costly_schema_is_compiled(server):
    """Counts whole chats within one costly request, by the order of events; how long each takes does not matter."""
    lock, begun, ended, within, most = threading.Lock(), 0, 0, 0, 0
    stop, outcomes = threading.Event(), []

    def send() -> None:
        nonlocal begun, ended, within
        number = 0
        while not stop.is_set():
            with lock:
                begun, within = begun + 1, 0
            outcomes.append(server.post(CHAT, costly(number)).status_code)
            with lock:
                ended += 1
            number += 1

    client = threading.Thread(target=send)
    client.start()
    try:
        until = time.monotonic() + SECONDS
        while most < CHATS_WITHIN and client.is_alive() and time.monotonic() < until:
            with lock:
                before = (begun, ended)
            got = server.post(CHAT, chat("Hello", max_tokens=1))
            assert got.status_code == 200 and got.json()["usage"]["completion_tokens"] == 1
            with lock:
                if before == (begun, ended) and begun > ended:
                    within += 1
                    most = max(most, within)
    finally:
        stop.set()
        client.join()
    assert set(outcomes) <= {200, 400}, outcomes
    assert most >= CHATS_WITHIN, f"{most} chats within one of {begun} costly requests"


@pytest.mark.parametrize(
    "schema",
    [
        {
            "type": "object",
            "properties": {"a": {"type": "string", "format": "date", "maxLength": 2}},
            "required": ["a"],
        },
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"allOf": [{"anyOf": [{"const": i}, {"const": -i}]} for i in range(1, 20)]},
    ],
)
def test_a_schema_that_cannot_be_enforced_is_one_error_that_says_where(server, schema):
    got = server.post(CHAT, chat("json", response_format=response_format(schema)))
    message = got.json()["error"]["message"]
    assert got.status_code == 400 and "response_format" in message and "#" in message, message
    assert "Regex" not in message and "%" not in message, message
