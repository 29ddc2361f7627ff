"""What a model said reaches the client whole: streamed or not, through both protocols.

The answers are scripted: the server takes them from a decoder that does not compute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from kvlab.decoder import Completion, Stream
from kvlab.models import LoadedModel
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.structured.grammar import Constraint
from tests.answer_kit import FAMILIES, TOOLS
from tests.server_kit import Local

CALL = '<tool_call>\n{"name": "find", "arguments": {"text": "a"}}\n</tool_call>'
FOUND = ("find", {"text": "a"})
REASONS = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
FORMS = [(path, stream) for path in ("/v1/chat/completions", "/v1/messages") for stream in (False, True)]


class Script:
    """Answers every request of ``model`` with one text."""

    def __init__(self, server: Local, model: ServedModel, loaded: LoadedModel) -> None:
        self.server, self.model, self._loaded = server, model, loaded
        self._form, self._thinking = model.tool_format, model.thinking
        self.text, self.reason, self.failure = "", "stop", ""
        model.decoder.submit = self._submit  # type: ignore[method-assign]

    def says(
        self, text: str, reason: str = "stop", *, family: str = "", thinks: bool = False, failure: str = ""
    ) -> None:
        self.text, self.reason, self.failure = text, reason, failure
        self.model.tool_format = next((f.format for f in FAMILIES if f.name == family), self._form)
        self.model.thinking = ("<think>", "</think>") if thinks else self._thinking

    def _submit(self, prompt: Any, *, logits_processors: Any = (), tags: Any = None, **_: Any) -> Stream:
        for processor in logits_processors:
            if isinstance(processor, Constraint):
                processor.failure = self.failure
        stream = Stream(0, lambda _: None)
        tokens = self._loaded.encode(self.text)
        for token in tokens:
            stream.push(token)
        figures = dict.fromkeys(("queue_ms", "lookup_ms", "restore_ms", "prefill_ms", "ttft_ms", "tpot_ms"), 0.0)
        stream.finish(
            Completion(
                request=0,
                tokens=tuple(tokens),
                finish_reason=self.reason,
                prompt_tokens=len(prompt),
                cached_tokens=0,
                cached_by_tier={},
                miss="",
                itl_ms=(),
                kv_bytes_live=0,
                tags=tags or {},
                **figures,
            )  # fmt: skip
        )
        return stream


@pytest.fixture(scope="module")
def script(bundled: LoadedModel) -> Iterator[Script]:
    with Local("full", bundled) as server:
        [model] = server.handle.app.state.service.pool.open.values()
        yield Script(server, model, bundled)


class Said(NamedTuple):
    """What a client got, in one form for all protocols."""

    content: str
    reasoning: str
    calls: list[tuple[str, Any]]
    reason: str | None
    error: str = ""


def ask(script: Script, path: str, stream: bool, *, tools: bool = True, **fields: Any) -> Said:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 200, "stream": stream}
    body |= fields
    offered = [tool["function"] for tool in TOOLS] if tools else []
    if path == "/v1/messages":
        body["tools"] = [{"name": f["name"], "input_schema": f["parameters"]} for f in offered]
    else:
        body["tools"] = [{"type": "function", "function": f} for f in offered]
    answer = script.server.post(path, body)
    events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")] if stream else []
    if not events:
        events = [answer.json()]
    read = anthropic_said if path == "/v1/messages" else openai_said
    return read(events, stream and answer.status_code == 200)


def openai_said(events: list[dict[str, Any]], stream: bool) -> Said:
    content = reasoning = ""
    calls, reason = [], None
    for event in events:
        if "error" in event:
            return Said(content, reasoning, calls, reason, event["error"]["message"])
        for choice in event["choices"]:
            part = choice["delta"] if stream else choice["message"]
            content += part.get("content") or ""
            reasoning += part.get("reasoning_content") or ""
            calls += [
                (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in part.get("tool_calls") or []
            ]
            reason = choice["finish_reason"] or reason
    return Said(content, reasoning, calls, reason)


def anthropic_said(events: list[dict[str, Any]], stream: bool) -> Said:
    blocks: list[dict[str, Any]] = []
    reason = None
    for event in events:
        if event["type"] == "error":
            return Said("", "", [], None, event["error"]["message"])
        if not stream:
            blocks, reason = event["content"], event["stop_reason"]
        elif event["type"] == "content_block_start":
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            kind = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}[delta["type"]]
            blocks[-1][kind] += delta.get("text", delta.get("thinking", delta.get("partial_json")))
        elif event["type"] == "message_delta":
            reason = event["delta"]["stop_reason"]
    texts = {kind: "".join(b[kind] for b in blocks if b["type"] == kind) for kind in ("text", "thinking")}
    calls = [
        (b["name"], json.loads(b["json"]) if stream else b["input"]) for b in blocks if b["type"] == "tool_use"
    ]  # fmt: skip
    return Said(texts["text"], texts["thinking"], calls, REASONS.get(reason or "", reason))


ANSWERS = {
    "words": ("It is 4.\n", "stop", Said("It is 4.\n", "", [], "stop")),
    "words cut": ("It is", "length", Said("It is", "", [], "length")),
    "call": (f"Look.\n{CALL}", "stop", Said("Look.", "", [FOUND], "tool_calls")),
    "call at the limit": (CALL, "length", Said("", "", [FOUND], "tool_calls")),
    "second call cut": (CALL + '\n<tool_call>\n{"name": "fi', "length", Said("", "", [FOUND], "length")),
    "first call cut": ('Look.\n<tool_call>\n{"name": "find"', "length", Said("Look.", "", [], "length")),
    "words behind a call cut": (f"{CALL}\nThen", "length", Said("Then", "", [FOUND], "length")),
    "marker in a string": (
        CALL.replace('"a"', '"</tool_call> <think>"'),
        "stop",
        Said("", "", [("find", {"text": "</tool_call> <think>"})], "tool_calls"),
    ),
    "no call": ("<tool_call>{oops}</tool_call>", "stop", Said("<tool_call>{oops}</tool_call>", "", [], "stop")),
    "unknown tool": (
        '<tool_call>{"name": "x"}</tool_call> ', "stop", Said('<tool_call>{"name": "x"}</tool_call> ', "", [], "stop")
    ),
    "thinking": ("<think>4?</think>\n4.", "stop", Said("4.", "4?", [], "stop")),
    "half of a character": ('{"x"}<tool_call>{"name": "find", "arguments": {"text": "\\ud83d"}}</tool_call>', "stop",
                            Said('{"x"}', "", [("find", {"text": "\ufffd"})], "tool_calls")),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_both_protocols_streamed_or_not_say_the_same(script, name):
    text, reason, wanted = ANSWERS[name]
    script.says(text, reason, thinks=True)
    assert [ask(script, path, stream) for path, stream in FORMS] == [wanted] * len(FORMS)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.most_calls > 1], ids=lambda f: f.name)
def test_calls_of_every_family_reach_the_client(script, family):
    calls = [("find", {"text": "</tool_call> \"'\n", "count": 3}), ("write_file", {"flag": True, "items": ["a", "🎉"]})]
    script.says(family.write(calls), family=family.name)
    script.model.tool_format = family.format
    for path, stream in FORMS:
        said = ask(script, path, stream)
        assert (said.content, said.calls, said.reason) == ("", calls, "tool_calls")


def test_channels_reach_the_client(script):
    script.says(
        "<|channel|>analysis<|message|>Find it.<|end|><|start|>assistant<|channel|>commentary to=functions.find "
        '<|constrain|>json<|message|>{"text": "a"}',
        family="harmony",
    )
    for path, stream in FORMS:
        assert ask(script, path, stream) == Said("", "Find it.", [FOUND], "tool_calls")
    script.says(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>4", family="harmony"
    )
    for path, stream in FORMS:
        assert ask(script, path, stream, tools=False) == Said("4", "Hm.", [], "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_json_of_a_schema_is_not_searched_for_markers(script, stream):
    for value in ({"a": "use <think> and </think> tags"}, {"a": CALL}, {"<tool_call>": [" <think>", "</tool_call>\n"]}):
        text = json.dumps(value)
        script.says(text, thinks=True)
        said = ask(script, FORMS[0][0], stream, tools=False, response_format={"type": "json_object"})
        assert said == Said(text, "", [], "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ['{"a": ', "", "no JSON"])
def test_answer_without_the_json_that_was_promised_is_an_error(script, stream, text):
    """Class: the model ends its answer before, within or without the JSON; cut by the limit it says ``length``."""
    options: dict[str, Any] = {"tools": False, "response_format": {"type": "json_object"}}
    script.says(text)
    assert "without the JSON" in ask(script, FORMS[0][0], stream, **options).error
    script.says(text, "length")
    assert ask(script, FORMS[0][0], stream, **options) == Said(text, "", [], "length")
    script.says(text + "END")  # the client's own stop string may cut what it likes
    assert ask(script, FORMS[0][0], stream, stop=["END"], **options) == Said(text, "", [], "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_grammar_that_failed_is_an_error(script, stream):
    """Class: schema or required call, with nothing, a part, or a whole and a part of the answer said."""
    script.says('{"a": 1}', failure="too complex")
    answer = ask(script, FORMS[0][0], stream, tools=False, response_format={"type": "json_object"})
    assert "too complex" in answer.error
    for path, text in ((FORMS[0][0], '<tool_call>\n{"name'), (FORMS[0][0], f"{CALL}\n<tool_call>"), (FORMS[2][0], "")):
        script.says(text, failure="too complex")
        choice = "required" if path == FORMS[0][0] else {"type": "any"}
        assert "too complex" in ask(script, path, stream, tool_choice=choice).error
    script.says(CALL, failure="too complex")
    assert ask(script, FORMS[0][0], stream, tool_choice="required").calls == [FOUND]


@pytest.mark.parametrize(("path", "stream"), FORMS)
def test_one_call_where_the_client_wants_one(script, path, stream):
    script.says(f"{CALL}\n{CALL}")
    fields = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}, "parallel_tool_calls": False}
    assert ask(script, path, stream, **fields) == Said("", "", [FOUND], "tool_calls")


@pytest.mark.parametrize(("path", "stream"), FORMS)
def test_unset_numbers_and_foreign_tools_are_answered(script, path, stream):
    script.says(CALL)
    for fields in ({"max_tokens": 0}, {"max_tokens": -1}, {"top_k": -1}, {"top_p": 0}, {"tool_choice": "any"}):
        assert ask(script, path, stream, **fields).calls == [FOUND]
    assert ask(script, path, stream, tool_choice={"type": "auto"}).calls == [FOUND]
