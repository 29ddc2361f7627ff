"""Tools in the forms that clients of all protocols send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def name_of(item: Any) -> str | None:
    """Return the name in a tool or a choice of one; None without."""
    function = item.get("function") if isinstance(item, Mapping) else None
    found = function.get("name") if isinstance(function, Mapping) else function
    found = found or (item.get("name") if isinstance(item, Mapping) else None)
    return found if isinstance(found, str) else None


def openai_tools(tools: Any) -> Any:
    """Return tools in OpenAI's form, whichever protocol's they have; tools of other types beside them are left out.

    For a pydantic validator: raises ValueError where no function is left.
    """
    if not isinstance(tools, list) or not tools:
        return tools
    forms = [(tool, _openai_tool(tool)) for tool in tools]
    made = [form for tool, form in forms if form is not None or not isinstance(tool, Mapping)]
    if not made:
        kinds = ", ".join(sorted({str(tool.get("type")) for tool in tools}))
        raise ValueError(f"tools of type {kinds} are not supported: send functions with a JSON schema")
    return made


def anthropic_tools(tools: Any) -> Any:
    """Return tools in Anthropic's form; those that run at the provider are left out beside others."""
    if not isinstance(tools, list):
        return tools
    made = [_anthropic_tool(tool) for tool in tools]
    custom = [tool for tool in made if not _runs_at_provider(tool)]
    return custom or made


def _openai_tool(tool: Any) -> Any:
    """Return the tool with its function; None for a tool of another type, anything else as it is."""
    if not isinstance(tool, Mapping):
        return tool
    if isinstance(tool.get("function"), Mapping):
        return {"type": "function", "function": tool["function"]}
    schema = tool.get("parameters", tool.get("input_schema"))
    if (
        isinstance(tool.get("name"), str)
        and tool.get("type") in (None, "function", "custom")
        and (schema is not None or tool.get("type") == "function")
    ):
        function = {"name": tool["name"], "description": tool.get("description"), "parameters": schema}
        return {"type": "function", "function": function}
    return tool if tool.get("type") in (None, "function") else None


def _anthropic_tool(tool: Any) -> Any:
    if not isinstance(tool, Mapping) or tool.get("input_schema") is not None:
        return tool
    function = tool.get("function", tool if "parameters" in tool else None)
    if not isinstance(function, Mapping):
        return tool
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function.get("name"), "description": function.get("description"), "input_schema": schema}


def _runs_at_provider(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    return kind not in (None, "custom", "function") and tool.get("input_schema") is None
