"""From a canonical conversation to the messages that one chat template accepts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.models.templates.dialect import TemplateDialect, call_id
from kvlab.models.templates.fields import TemplateMessage
from kvlab.models.templates.tools_as_text import tool_list, with_calls_as_text

MERGED = "\n\n"
"""Between messages that a template wants as one."""

Tools = Sequence[Mapping[str, Any]]


def adapt(
    messages: Sequence[TemplateMessage], tools: Tools, dialect: TemplateDialect
) -> tuple[list[TemplateMessage], Tools]:
    """Return messages and tools for a template of this ``dialect``.

    What comes out for the first messages does not depend on those after an answer, so that prefixes stay equal from
    turn to turn.
    """
    made = [dict(message) for message in messages]
    if tools and not dialect.shows_tools:
        made = _with_tool_list(made, tool_list(tools, with_form=not dialect.shows_calls))
        tools = ()
    if not dialect.late_system:
        made = _with_reminders(made)
    if not dialect.has_system:
        made = _without_system(made)
    made = [_with_reasoning(message, dialect) for message in made]
    if not dialect.shows_calls:
        made = with_calls_as_text(made)
    elif not dialect.parallel_calls:
        made = _with_single_calls(made)
    made = _merged(made, dialect)
    return [_in_form(message, dialect) for message in made], tools


def _with_tool_list(messages: list[TemplateMessage], text: str) -> list[TemplateMessage]:
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": messages[0]["content"] + MERGED + text}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_reminders(messages: list[TemplateMessage]) -> list[TemplateMessage]:
    """Write later system messages as reminders in user messages, behind the results that belong to calls."""
    made: list[TemplateMessage] = []
    held: list[TemplateMessage] = []
    for i, message in enumerate(messages):
        if message["role"] == "system" and i > 0:
            reminder = {"role": "user", "content": f"<system-reminder>\n{message['content']}\n</system-reminder>"}
            held.append(reminder)
            continue
        if message["role"] != "tool":
            made += held
            held = []
        made.append(message)
    return made + held


def _without_system(messages: list[TemplateMessage]) -> list[TemplateMessage]:
    """Put the leading system message before the first user message."""
    if not messages or messages[0]["role"] != "system":
        return messages
    system, rest = messages[0]["content"], messages[1:]
    if rest and rest[0]["role"] == "user":
        return [{**rest[0], "content": system + MERGED + rest[0]["content"]}, *rest[1:]]
    return [{"role": "user", "content": system}, *rest]


def _with_reasoning(message: TemplateMessage, dialect: TemplateDialect) -> TemplateMessage:
    """Put thinking into the field that the template reads it from."""
    if "reasoning_content" not in message:
        return message
    made = {k: v for k, v in message.items() if k != "reasoning_content"}
    thinking, content = message["reasoning_content"], message["content"]
    if made.get("tool_calls") and content and not dialect.reasoning_beside_content:
        return {**made, "content": thinking + MERGED + content}
    return {**made, dialect.reasoning_field: thinking} if dialect.reasoning_field else made


def _with_single_calls(messages: list[TemplateMessage]) -> list[TemplateMessage]:
    """Write an answer with several calls as several answers, each followed by its result."""
    made: list[TemplateMessage] = []
    left = iter(messages)
    message = next(left, None)
    while message is not None:
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            made.append(message)
            message = next(left, None)
            continue
        results = []
        answer, message = message, next(left, None)
        while message is not None and message["role"] == "tool":
            results.append(message)
            message = next(left, None)
        for number, call in enumerate(calls):
            made.append({**answer, "content": answer["content"] if number == 0 else "", "tool_calls": [call]})
            made += [result for result in results if result.get("tool_call_id") == call["id"]]
        made += [result for result in results if result.get("tool_call_id") not in {call["id"] for call in calls}]
    return made


def _merged(messages: list[TemplateMessage], dialect: TemplateDialect) -> list[TemplateMessage]:
    """Merge neighbours that the template refuses side by side."""
    made: list[TemplateMessage] = []
    for message in messages:
        before = made[-1] if made else {"role": ""}
        pair = (before["role"], message["role"])
        one = (
            (pair == ("user", "user") and not dialect.adjacent_users)
            or (pair == ("tool", "user") and not dialect.user_after_result)
            or (pair == ("assistant", "assistant") and not dialect.adjacent_answers and not before.get("tool_calls"))
        )
        if one:
            content = MERGED.join(filter(None, [before["content"], message["content"]]))
            made[-1] = {**message, **before, "content": content}
        else:
            made.append(message)
    return made


def _in_form(message: TemplateMessage, dialect: TemplateDialect) -> TemplateMessage:
    """Give calls, ids and content the form that the template reads."""
    made = dict(message)
    if calls := made.get("tool_calls"):
        made["tool_calls"] = [_call_in_form(call, dialect) for call in calls]
    if made["role"] == "tool" and dialect.ids_name_calls:
        made["tool_call_id"] = _id(made.get("tool_call_id", ""), made.get("name", ""), dialect)
    if dialect.reads_parts:
        made["content"] = [{"type": "text", "text": made["content"]}]
    return made


def _call_in_form(call: Mapping[str, Any], dialect: TemplateDialect) -> TemplateMessage:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if dialect.argument_text:
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str) and not dialect.malformed_arguments:
        arguments = {"arguments": arguments}
    return {**call, "id": _id(call["id"], name, dialect), "function": {"name": name, "arguments": arguments}}


def _id(canonical_id: str, name: str, dialect: TemplateDialect) -> str:
    number = canonical_id.removeprefix("call")
    return call_id(dialect, name, int(number)) if number.isdigit() else canonical_id
