"""Canonical conversations: one form for each message, however a client of either protocol spells it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kvlab.errors import ModelError
from kvlab.models.templates import REASONING_FIELDS, CallNumbers, TemplateMessage
from kvlab.server.errors import ApiError

Message = Mapping[str, Any]

ROLES = {"developer": "system", "function": "tool"}
"""Names of one protocol version for roles that templates know by another."""
TEXT_PARTS = ("text", "input_text", "output_text")
CALL_FIELDS = ("tool_calls", "function_call")

BILLING_LINE = re.compile(
    r"""\Ax-anthropic-billing-header:(?:
    # Fields, which the real prompt may follow on the same line
    (?:[ \t]*[\w.-]+=[^;\s]*;)*(?:[ \t]*[\w.-]+=[^;\s]*)?[ \t]*(?:\n|\Z)
    | (?:[ \t]*[\w.-]+=[^;\s]*;)+[ \t]*
    # A line of another form
    | [^\n]*(?:\n|\Z))""",
    re.VERBOSE,
)
"""A line of Claude Code that begins its system prompt and changes with every request."""


def canonical(messages: Iterable[Message]) -> tuple[TemplateMessage, ...]:
    """Return the conversation in canonical form. Raises ApiError 400 for content that is no text. Idempotent."""
    return canonical_with_places(messages)[0]


def canonical_with_places(messages: Iterable[Message]) -> tuple[tuple[TemplateMessage, ...], tuple[int, ...]]:
    """Return the conversation in canonical form, and for each message where it begins in ``messages``.

    Content is a string; leading system messages are one; thinking is ``reasoning_content``; the arguments of calls are
    mappings where they are JSON objects; calls are numbered in their order, and results carry number and name.
    Raises ApiError 400.
    """
    made: list[TemplateMessage] = []
    places: list[int] = []
    calls = CallNumbers()
    for place, message in enumerate(messages):
        role = ROLES.get(str(message.get("role")), str(message.get("role")))
        one = {k: v for k, v in message.items() if k not in (*REASONING_FIELDS, *CALL_FIELDS)}
        one |= {"role": role, "content": text_of(message.get("content"), role)}
        if role == "system":
            if not one["content"].strip():
                continue
            if len(made) == 1 and made[0]["role"] == "system":
                made[0]["content"] += "\n\n" + one["content"]
                continue
        elif role == "assistant":
            one |= _reasoning(message)
            one |= _numbered(calls, message)
        elif role == "tool":
            one |= calls.of_result(message)
        made.append(one)
        places.append(place)
    return tuple(made), tuple(places)


def canonical_tools(tools: Iterable[Message]) -> tuple[TemplateMessage, ...]:
    """Return tools with every field that templates read, and with none that says how calls are generated."""
    made = []
    for tool in tools:
        function = tool["function"]
        fields = {"name": function["name"], "description": function.get("description") or ""}
        fields["parameters"] = function.get("parameters") or {"type": "object", "properties": {}}
        made.append({"type": "function", "function": fields})
    return tuple(made)


def text_of(content: object, role: str) -> str:
    """Return the text of a message's content: a string, a list of parts, or nothing. Raises ApiError 400."""
    if content is None:
        return ""
    if isinstance(content, str):
        return without_billing_line(content) if role == "system" else content
    if not isinstance(content, Sequence):
        raise ApiError(400, "content is a string or a list of parts", param="messages")
    texts = [_part_text(part, role) for part in content if _kind(part) not in ("thinking", "redacted_thinking")]
    if role == "system":
        texts = [without_billing_line(text) for text in texts]
    return "".join(texts) if role == "assistant" else joined(texts)


def joined(texts: Iterable[str]) -> str:
    """Join the texts of parts as they are; a line break parts two that would else run into one word."""
    made: list[str] = []
    for text in filter(None, texts):
        if made and not made[-1][-1].isspace() and not text[0].isspace():
            made.append("\n")
        made.append(text)
    return "".join(made)


def without_billing_line(text: str) -> str:
    """Return a system text without the billing line that Claude Code begins it with."""
    return BILLING_LINE.sub("", text, count=1)


def merged_answer(first: Message, more: Message) -> TemplateMessage:
    """Return the answer ``first`` with what was generated to continue it."""
    made = {**first, "content": str(first.get("content") or "") + str(more.get("content") or "")}
    thinking = str(first.get("reasoning_content") or "") + str(more.get("reasoning_content") or "")
    if thinking:
        made["reasoning_content"] = thinking
    if more.get("tool_calls"):
        made["tool_calls"] = more["tool_calls"]
    return made


def key_parts(message: TemplateMessage) -> list[Any]:
    """Return what tells a canonical message from others: all that a template could show of it.

    Space around an answer and its thinking does not count, as clients keep it or not; nor do other fields of an answer.
    """
    if message["role"] != "assistant":
        return [message["role"], message["content"], {k: v for k, v in message.items() if k not in ("role", "content")}]
    calls = [call["function"] for call in message.get("tool_calls", ())]
    named = [[call["name"], call["arguments"]] for call in calls]
    return ["assistant", message["content"].strip(), str(message.get("reasoning_content", "")).strip(), named]


def _numbered(calls: CallNumbers, message: Message) -> TemplateMessage:
    try:
        return calls.of_answer(message)
    except ModelError as error:
        raise ApiError(400, str(error), param="messages") from error


def _reasoning(message: Message) -> TemplateMessage:
    texts = [message[name] for name in REASONING_FIELDS if isinstance(message.get(name), str) and message[name]]
    if not texts and isinstance(message.get("content"), list):
        thoughts = [part.get("thinking") for part in message["content"] if _kind(part) == "thinking"]
        texts = ["".join(text_of(thought, "assistant") for thought in thoughts)]
    return {"reasoning_content": texts[0]} if texts and texts[0] else {}


def _kind(part: object) -> str:
    return str(part.get("type", "text")) if isinstance(part, Mapping) else "text"


def _part_text(part: object, role: str) -> str:
    kind = _kind(part)
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            return str(part["text"])
        if kind == "refusal":
            return str(part.get("refusal") or "")
        if (document := _document_text(part)) is not None:
            return document
        if role == "tool":  # a client sends a result again at every later turn: an error would end the conversation
            return f"[{kind.removeprefix('input_').removesuffix('_url')} left out: this model reads text only]"
        if kind not in TEXT_PARTS:
            raise ApiError(
                400, f"content of type {kind!r} is not supported: these models read text; send text", param="messages"
            )
    raise ApiError(400, 'a part of content looks like {"type": "text", "text": "words"}', param="messages")


def _document_text(part: Mapping[str, Any]) -> str | None:
    """Return the text of a document, search result or resource that has some."""
    for inner in (part.get("source"), part.get("resource")):
        if isinstance(inner, Mapping):
            for name in ("data", "text"):
                if isinstance(inner.get(name), str) and (name == "text" or inner.get("type") == "text"):
                    return str(inner[name])
    if _kind(part) == "search_result" and isinstance(part.get("content"), list):
        return joined([str(part.get("title") or ""), text_of(part["content"], "tool")])
    return None
