"""Names and arguments of a call are found in the tokens of an answer, whatever form a template writes calls in.

The class: any template (calls are text under one that shows none), any names (words of the form itself among them) and
any arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from kvlab.experiments.forced_answers import ForcedItem, chat_item
from kvlab.experiments.prompts import Prompts
from kvlab.models import LoadedModel
from kvlab.workloads import WorkloadRequest
from kvlab.workloads.call_spans import ARGUMENT, NAME

CALLS = [
    ("get_weather", {"city": "Zürich", "days": 3, "hourly": True}),
    ("name", {"name": "arguments", "function": "call"}),  # words of the form of calls
    ("book.table", {"at": [{"date": "2024-05-01", "seats": 2}], "note": 'a "quoted" word\nand a line', "x": -1.5}),
    ("spotify.play", {"type": "type", "a": "a", "id": "名前"}),
]


def request(calls: list[tuple[str, Mapping[str, Any]]], content: str | None = None) -> WorkloadRequest:
    made = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(calls)
    ]
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": "a tool",
                "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in arguments}},
            },
        }
        for name, arguments in calls
    ]
    reference = {"role": "assistant", "content": content, "tool_calls": made}
    messages = ({"role": "user", "content": "What is new?"},)
    return WorkloadRequest("c", 1, messages, tuple(tools), reference, "call", 64)


def text_of_kind(item: ForcedItem, kind: str, model: LoadedModel) -> str:
    return model.decode([token for token, its in zip(item.forced.answer, item.kinds, strict=True) if its == kind])


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call[0])
def test_name_and_values_are_found_in_the_answer(served: LoadedModel, call: tuple[str, dict[str, Any]]) -> None:
    one = request([call])
    item = chat_item(one, Prompts(served, [one]))
    name, arguments = call
    # A token may hold a quote or a bracket beside what it is counted for.
    assert text_of_kind(item, NAME, served).strip(" \"'{}[]<>=()/:\n,.") == name.strip(".")
    found = text_of_kind(item, ARGUMENT, served)
    for key, value in arguments.items():
        assert key in found
        if isinstance(value, str):
            written = (
                value,
                *(w[1:-1] for w in (json.dumps(value), json.dumps(value, ensure_ascii=False), repr(value))),
            )
            assert any(one in found for one in written)
    assert len(item.kinds) == len(item.forced.answer)
    assert served.decode(item.forced.prompt + item.forced.answer).startswith(served.decode(item.forced.prompt))


def test_text_before_a_call_is_prose(served: LoadedModel) -> None:
    """A word of the text that is the name of the tool stays prose."""
    one = request([("lookup", {"word": "lookup"})], "I use lookup now.")
    item = chat_item(one, Prompts(served, [one]))
    found = {kind: text_of_kind(item, kind, served) for kind in ("prose", "name", "argument")}
    assert "lookup" in found["name"] and found["name"].count("lookup") == 1
    assert "word" in found["argument"] and "lookup" in found["argument"]
    if "I use" in served.decode(item.forced.answer):  # some templates drop the text before a call
        assert "I use lookup now" in found["prose"]
