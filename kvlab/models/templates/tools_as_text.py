"""Tools, calls and results as plain text, for chat templates that show none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.models.templates.fields import TemplateMessage

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
"""The markers that answers of models without calls of their own are searched for."""


def tool_list(tools: Sequence[Mapping[str, Any]], *, with_form: bool) -> str:
    """Write the part of a system prompt that offers ``tools``; ``with_form`` says how to write a call, too."""
    lines = [json.dumps(tool, ensure_ascii=False) for tool in tools]
    text = "\n".join(["# Tools", "", "These functions can be called, one a line:", "<tools>", *lines, "</tools>"])
    if with_form:
        example = {"name": "the name", "arguments": {"the": "arguments"}}
        text += "\n\nTo call one, write a JSON object with its name and arguments, and nothing after it:\n"
        text += call_text(example["name"], example["arguments"])
    return text


def call_text(name: Any, arguments: Any) -> str:
    """Write one call."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{CALL_START}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {text}}}\n{CALL_END}'


def with_calls_as_text(messages: Sequence[TemplateMessage]) -> list[TemplateMessage]:
    """Return the messages with calls in the content of answers, and results in user messages."""
    made: list[TemplateMessage] = []
    for message in messages:
        if message["role"] == "tool":
            made.append({"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"})
            continue
        if calls := message.get("tool_calls"):
            texts = [call_text(call["function"]["name"], call["function"]["arguments"]) for call in calls]
            message = {k: v for k, v in message.items() if k != "tool_calls"}
            message["content"] = "\n".join(filter(None, [message["content"], *texts]))
        made.append(message)
    return made
