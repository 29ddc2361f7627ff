"""Costly requests: all of them are complete and arrive at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from tests.attacks.wire import Target, side_by_side

CHAT, MESSAGES, COMPLETIONS = "/v1/chat/completions", "/v1/messages", "/v1/completions"
COUNT = "/v1/messages/count_tokens"
HUGE = 8_000_000
CLIENTS = 2
"""Connections of one attack side by side, each with one request after the other."""

Posts = list[tuple[str, Any]]


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


def schema(form: Any) -> dict[str, Any]:
    return chat("json", response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": form}})


def tool(parameters: Any, **fields: Any) -> dict[str, Any]:
    function = {"name": "f", "parameters": parameters}
    return chat("call", tools=[{"type": "function", "function": function}], **fields)


def raw(field: bytes) -> bytes:
    """A chat with one more field, which the server ignores."""
    return b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":4,"ignored":' + field + b"}"


def huge_prompts() -> Posts:
    words, letters, signs = "word " * (HUGE // 5), "a" * HUGE, "\u4e2d" * (HUGE // 3)
    return [
        (CHAT, chat(words)),
        (MESSAGES, chat(letters)),
        (COMPLETIONS, {"prompt": signs, "max_tokens": 4}),
        (COUNT, chat(words)),
        (CHAT, chat([{"type": "text", "text": "word "}] * (HUGE // 40))),
        (MESSAGES, chat("hi", system=words)),
    ]


def token_lists() -> Posts:
    return [
        (COMPLETIONS, {"prompt": [5] * (HUGE // 4), "max_tokens": 4}),
        (COMPLETIONS, {"prompt": [[5]] * (HUGE // 8), "max_tokens": 4}),
        (COMPLETIONS, {"prompt": ["a"] * 100_000, "max_tokens": 4}),
    ]


def deep_json() -> Posts:
    half = HUGE // 2
    return [
        (CHAT, raw(b"[" * half + b"]" * half)),
        (CHAT, raw(b"[" * 900 + b"]" * 900)),
        (CHAT, raw(b'{"a":' * (HUGE // 6) + b"1" + b"}" * (HUGE // 6))),
        (CHAT, raw(b"[" + b"[[0]]," * (HUGE // 6) + b"0]")),
        (MESSAGES, raw(b"{" + b",".join(b'"%d":{}' % i for i in range(HUGE // 12)) + b"}")),
        (CHAT, raw(b"9" * HUGE)),
        (CHAT, raw(b'"' + b"\\u00e9" * (HUGE // 6) + b'"')),
    ]


def many_messages() -> Posts:
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant")] * 50_000
    return [(CHAT, {"messages": turns, "max_tokens": 4}), (MESSAGES, {"messages": turns, "max_tokens": 4})]


def many_tools() -> Posts:
    tools = [{"type": "function", "function": {"name": f"f{i}", "description": "d" * 200}} for i in range(20_000)]
    claude = [{"name": f"f{i}", "description": "d" * 200, "input_schema": {}} for i in range(20_000)]
    return [(CHAT, chat("hi", tools=tools)), (MESSAGES, chat("hi", tools=claude))]


def multiple_of() -> Posts:
    forms = [{"type": "integer", "multipleOf": prime} for prime in (999983, 999979, 1299709, 15485863)]
    return [*((CHAT, schema(form)) for form in forms), (CHAT, tool({"type": "object", "properties": {"a": forms[0]}}))]


def wide_schemas() -> Posts:
    choices = [{"type": "object", "properties": {f"k{i}": {"type": "string"}}, "required": [f"k{i}"]}
               for i in range(5_000)]  # fmt: skip
    words = [f"word {i} of a long list" for i in range(50_000)]
    optional = {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(5_000)}}
    forms = [{"anyOf": choices}, {"oneOf": choices}, {"enum": words}, optional, {"const": "c" * 1_000_000}]
    return [(CHAT, schema(form)) for form in forms] + [
        (CHAT, tool({"type": "object", "properties": {"a": forms[0]}}, tool_choice="required")),
        (MESSAGES, chat("hi", tools=[{"name": "f", "input_schema": {"type": "object", "properties": {"a": forms[0]}}}],
                        tool_choice={"type": "any"})),
    ]  # fmt: skip


def deep_schemas() -> Posts:
    last = {"d1000": {"type": "string"}}
    chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1_000)} | last
    links = {
        f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(1_000)
    } | last
    ring = {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}
    made: Posts = [
        (CHAT, schema({"$ref": "#/$defs/d0", "$defs": chain})),
        (CHAT, schema({"$ref": "#/$defs/d0", "$defs": links})),
        (CHAT, schema({"$ref": "#/$defs/a", "$defs": ring})),
    ]
    nested: list[Callable[[Any], Any]] = [
        lambda form: {"type": "object", "properties": {"a": form}, "required": ["a"]},
        lambda form: {"type": "array", "items": form},
        lambda form: {"anyOf": [form, {"type": "null"}]},
        lambda form: {"allOf": [form, {"anyOf": [{"type": "object"}, {"type": "array"}]}]},
        lambda form: {"not": form},
    ]
    for wrap in nested:
        form: Any = {"type": "string"}
        for _ in range(200):
            form = wrap(form)
        made += [(CHAT, schema(form)), (CHAT, tool({"type": "object", "properties": {"a": form}}))]
    return made


def repeats() -> Posts:
    forms: list[Any] = [
        {"type": "string", "pattern": "^(a{1,900}){1,900}$"},
        {"type": "string", "pattern": "^((((a|b){1,60}){1,60}){1,60}){1,60}$"},
        {"type": "string", "pattern": "^(" + "|".join(f"[^{chr(97 + i % 26)}]*{i}" for i in range(2_000)) + ")$"},
        {"type": "string", "minLength": 5_000_000, "maxLength": 9_000_000},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer"}, "maxItems": 3_000},
            "maxItems": 3_000,
        },
        {"type": "integer", "minimum": 17, "maximum": 10**300},
        {"type": "object", "patternProperties": {f"^k{i}.*": {"type": "integer"} for i in range(2_000)}},
    ]
    return [(CHAT, schema(form)) for form in forms]


def long_stops() -> Posts:
    stops = ["x" * 1_000_000 for _ in range(16)]
    return [
        (CHAT, chat("hi", stop=stops, max_tokens=200)),
        (CHAT, chat("hi", stop=[s[:400_000] for s in stops], max_tokens=200, stream=True)),
        (MESSAGES, chat("hi", stop_sequences=stops, max_tokens=200)),
        (COMPLETIONS, {"prompt": "hi", "stop": stops, "max_tokens": 200}),
        (MESSAGES, chat("hi", stop_sequences=["y"] * 100_000)),
    ]


def wide_fields() -> Posts:
    bias = {str(i % 2000): 1 for i in range(2000)} | {f"{'0' * 50}{i}": 1 for i in range(100_000)}
    return [
        (CHAT, chat("hi", logit_bias=bias)),
        (CHAT, chat("hi", n=128, max_tokens=400, logprobs=True, top_logprobs=20)),
        (CHAT, chat("hi", model="m" * 1_000_000)),
        (CHAT, chat("hi", user="u" * 1_000_000, metadata={f"k{i}": "v" * 100 for i in range(50_000)})),
        (f"{CHAT}?{'q' * 60_000}", chat("hi")),
    ]


def long_prompts() -> Posts:
    """Prompts that the context allows, each of them new, so that all of it is computed."""
    return [(CHAT, chat(f"{start} " + " ".join(str(i * start % 7919) for i in range(5_000)))) for start in range(1, 20)]


BODIES: dict[str, Callable[[], Posts]] = {
    made.__name__: made
    for made in (
        huge_prompts, token_lists, deep_json, many_messages, many_tools, multiple_of, wide_schemas, deep_schemas,
        repeats, long_stops, wide_fields, long_prompts,
    )
}  # fmt: skip


def encoded(posts: Posts) -> list[tuple[str, bytes]]:
    return [(path, body if isinstance(body, bytes) else json.dumps(body).encode()) for path, body in posts]


def post_all(target: Target, posts: list[tuple[str, bytes]]) -> None:
    """Send the requests in turn, again and again, each on a connection of its own."""
    in_turn: Iterator[tuple[str, bytes]] = cycle(posts)

    def client() -> None:
        while not target.is_over:
            target.post(*next(in_turn))

    side_by_side(CLIENTS, client)
