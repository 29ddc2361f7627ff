"""Grading by the stated values, in any wording: tool calls as JSON, values as `#` and three digits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

CALL = re.compile(r"\s*<tool_call>\s*(\{.*\})\s*</tool_call>\s*", re.DOTALL)
VALUE = re.compile(r"#(\d+)")


def parse_call(text: str) -> tuple[str, dict[str, Any]] | None:
    """Return `(name, arguments)` of a text that is exactly one `<tool_call>{json}</tool_call>`, else None."""
    match = CALL.fullmatch(text)
    if match is None:
        return None
    try:
        call = json.loads(match.group(1))
    except json.JSONDecodeError:
        return None
    name, arguments = call.get("name"), call.get("arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return name, arguments


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return `(name, arguments)` of every tool call of a message; arguments given as text of JSON are read."""
    functions = [call["function"] for call in message["tool_calls"]]
    return [(function["name"], _read_arguments(function["arguments"])) for function in functions]


def _read_arguments(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:  # a model may have written them
        return arguments


def grade_call(text: str, reference: dict[str, Any], tools: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Grade `tool_call`, `argument` and `accuracy` of a text that should be the reference's call."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
    parsed = parse_call(text)
    if parsed is None:
        return {"tool_call": 0.0, "argument": 0.0, "accuracy": 0.0}
    name, arguments = parsed
    right_name, right_arguments = calls_of(reference)[0]
    valid = name in schemas and set(schemas[name].get("required", ())) <= set(arguments)
    argument = arguments == right_arguments
    return {
        "tool_call": float(valid),
        "argument": float(argument),
        "accuracy": float(valid and argument and name == right_name),
    }


def grade_values(text: str, reference: str) -> dict[str, float]:
    """Grade `accuracy`: the text states the reference's values and no others; `{}` when the reference states none."""
    right = set(VALUE.findall(reference))
    return {"accuracy": float(set(VALUE.findall(text)) == right)} if right else {}
