"""Fields that clients write in more than one way are read as they mean them, on both endpoints.

The class: numbers that stand for "unset" or "off", choices of tools as words, objects and names of any protocol, tools
in another protocol's form, and tools that this server cannot run beside ones that it can.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kvlab.server.anthropic.types import MessagesRequest
from kvlab.server.errors import ApiError
from kvlab.server.generation.sampling import Sampling, sampler
from kvlab.server.generation.tool_choice import choose_tools, is_none
from kvlab.server.openai.types import ChatRequest, CompletionRequest

MESSAGES = [{"role": "user", "content": "x"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def openai(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"messages": MESSAGES, **fields})


def anthropic(**fields: Any) -> MessagesRequest:
    return MessagesRequest.model_validate({"messages": MESSAGES, "max_tokens": 5, **fields})


def offered(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in names]


@pytest.mark.parametrize("read", [openai, anthropic])
@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"max_tokens": 0}, {"max_tokens": None}),
        ({"max_tokens": -1}, {"max_tokens": None}),
        ({"max_tokens": -2}, {"max_tokens": None}),
        ({"max_tokens": None}, {"max_tokens": None}),
        ({"max_tokens": "-1"}, {"max_tokens": None}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_p": 0}, {"top_p": 0.0}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"tool_choice": ""}, {"tool_choice": None}),
        ({"tools": None}, {"tools": None}),
        ({"tools": []}, {"tools": []}),
    ],
)
def test_numbers_that_mean_unset_or_off_are_read_so(read, fields, wanted):
    body = read(**fields)
    assert {name: getattr(body, name) for name in wanted} == wanted


def test_fields_of_one_endpoint_alone_are_read_so():
    body = openai(max_completion_tokens=-1, max_tokens=9, seed=-1, repetition_penalty=0)
    assert (body.max_completion_tokens or body.max_tokens, body.seed, body.repetition_penalty) == (9, None, 1.0)
    assert openai(seed=-2).seed == -2
    assert CompletionRequest.model_validate({"prompt": "x", "max_tokens": 0, "top_k": -1}).max_tokens is None


@pytest.mark.parametrize("fields", [{"top_p": 1.5}, {"top_p": -1}, {"temperature": 9}, {"top_k": 2**40}])
@pytest.mark.parametrize("read", [openai, anthropic])
def test_numbers_that_mean_nothing_are_refused(read, fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        read(**fields)


def test_no_probability_mass_leaves_the_likeliest_token():
    assert sampler(Sampling(temperature=1.5, top_p=0.0, seed=3), 0, 50) is None
    assert sampler(Sampling(temperature=1.5, top_p=0.1), 0, 50) is not None


@pytest.mark.parametrize(
    ("choice", "mode", "names"),
    [
        (None, "auto", ["a", "b"]),
        ("auto", "auto", ["a", "b"]),
        ("any", "required", ["a", "b"]),
        ("required", "required", ["a", "b"]),
        ("none", "none", ["a", "b"]),
        ("b", "required", ["b"]),
        ({"type": "auto"}, "auto", ["a", "b"]),
        ({"type": "any"}, "required", ["a", "b"]),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", ["a", "b"]),
        ({"type": "required"}, "required", ["a", "b"]),
        ({"type": "none"}, "none", ["a", "b"]),
        ({"type": "tool", "name": "b"}, "required", ["b"]),
        ({"type": "function", "name": "b"}, "required", ["b"]),
        ({"type": "function", "function": {"name": "b"}}, "required", ["b"]),
        ({"function": {"name": "b"}}, "required", ["b"]),
        ({"type": "function", "function": "b"}, "required", ["b"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": offered("b")}},
            "required",
            ["b"],
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "a"}]}, "auto", ["a"]),
    ],
)
def test_choices_of_tools_are_read_in_every_form(choice, mode, names):
    for read in (openai, anthropic):
        got, callable_tools = choose_tools(read(tool_choice=choice).tool_choice, offered("a", "b"))
        assert (got, [tool["function"]["name"] for tool in callable_tools]) == (mode, names)
    assert is_none(choice) == (mode == "none")


@pytest.mark.parametrize(
    "choice", ["sometimes", {"type": "tool"}, {"type": "maybe"}, {"a": 1}, {"type": "tool", "name": "c"}]
)
def test_choices_that_mean_nothing_are_refused_and_say_what_to_write(choice):
    with pytest.raises(ApiError, match="there is a, b|write") as error:
        choose_tools(choice, offered("a", "b"))
    assert (error.value.status, error.value.param) == (400, "tool_choice")


def test_a_tool_may_have_the_name_of_a_word():
    assert choose_tools({"type": "function", "function": {"name": "auto"}}, offered("auto", "b"))[0] == "required"


FUNCTION = {"type": "function", "function": {"name": "a", "description": "d", "parameters": SCHEMA}}
FORMS = [
    FUNCTION,
    {"function": FUNCTION["function"]},
    {"type": "function", "name": "a", "description": "d", "parameters": SCHEMA},
    {"name": "a", "description": "d", "input_schema": SCHEMA},
    {"type": "custom", "name": "a", "description": "d", "input_schema": SCHEMA},
]
OTHERS = [
    {"type": "web_search"},
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 5},
    {"type": "bash_20250124", "name": "bash"},
    {"type": "mcp", "server_label": "x"},
]


@pytest.mark.parametrize("tool", FORMS)
def test_functions_are_read_in_the_forms_of_all_protocols(tool):
    [read] = openai(tools=[tool]).tools
    assert (read.function.name, read.function.description, read.function.parameters) == ("a", "d", SCHEMA)
    [named] = anthropic(tools=[tool]).tools
    assert (named.name, named.description, named.input_schema) == ("a", "d", SCHEMA)


@pytest.mark.parametrize("other", OTHERS)
def test_tools_of_other_types_are_left_out_beside_functions(other):
    assert [tool.function.name for tool in openai(tools=[other, FUNCTION]).tools] == ["a"]
    assert [tool.name for tool in anthropic(tools=[FORMS[3], other]).tools] == ["a"]
    with pytest.raises(ValidationError, match=f"type {other['type']} are not supported"):
        openai(tools=[other])


def test_tools_without_a_name_are_refused():
    nameless = [{"type": "function", "function": {}}], [{"type": "function"}]
    for tools in (*nameless, ["a"], "a", [None], [None, None], [[]]):
        with pytest.raises(ValidationError, match="tools"):
            openai(tools=tools)
