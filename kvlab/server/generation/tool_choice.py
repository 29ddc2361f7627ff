"""Which tools may be called, from the forms in which clients of all protocols write that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.generation.parse import select_tools
from kvlab.server.generation.tool_shapes import name_of

MODES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}
EXAMPLES = 'write "auto", "none", "required" or {"type": "function", "function": {"name": "…"}}'


def choose_tools(
    choice: str | Mapping[str, Any] | None, tools: list[dict[str, Any]]
) -> tuple[str, list[dict[str, Any]]]:
    """Return ``none``, ``auto`` or ``required``, and the tools that may be called. Raises ApiError 400.

    Args:
        choice: a word, the name of a tool, or an object with one of them in the form of OpenAI's or Anthropic's.
        tools: the offered tools in OpenAI's form.
    """
    if choice is None:
        return select_tools(None, tools)
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        names = {name_of(tool) for tool in allowed.get("tools") or []}
        return select_tools(_mode(allowed.get("mode", "auto")), [t for t in tools if name_of(t) in names])
    name = name_of(choice) if isinstance(choice, Mapping) else None if choice in MODES else choice
    if name:
        return select_tools(None, tools, name=name)
    return select_tools(_mode(choice if isinstance(choice, str) else choice.get("type")), tools)


def is_none(choice: str | Mapping[str, Any] | None) -> bool:
    """Whether a choice forbids calls, so that the tools are not rendered."""
    return (choice if isinstance(choice, str) else (choice or {}).get("type")) == "none"


def _mode(word: Any) -> str:
    if word not in MODES:
        raise ApiError(400, f"tool_choice {word!r} is not known: {EXAMPLES}", param="tool_choice")
    return MODES[word]
