"""Parsing that all protocols share: from messages, tools and limits to a :class:`GenerationRequest`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.limits import MAX_STOP_STRINGS
from kvlab.server.settings import Settings


def chat_request(
    model: ServedModel,
    settings: Settings,
    messages: Sequence[Mapping[str, Any]],
    visible_tools: Sequence[Mapping[str, Any]],
    *,
    template_options: Mapping[str, Any],
    max_tokens: int | None,
    tenant: str,
    **options: Any,
) -> GenerationRequest:
    """Render a conversation and check that its prompt fits the context. Raises ApiError 400.

    ``visible_tools`` are rendered into the prompt; ``options`` are other fields of :class:`GenerationRequest`.
    """
    template_options = dict(template_options)
    if not model.prompts.thinks:
        template_options.pop("enable_thinking", None)
    prompt = model.prompts.render(
        messages, visible_tools, template_options, tenant=tenant, max_tokens=max_tokens or settings.max_tokens
    )
    if prompt.continues and (options.get("schema") is not None or options.get("tool_choice") == "required"):
        raise ApiError(
            400, "an answer under a grammar begins anew: end the messages with a user message, not an assistant's",
            param="messages",
        )  # fmt: skip
    limit = model.limit_tokens(len(prompt.ids), max_tokens, settings.max_tokens)
    return GenerationRequest(prompt=prompt, max_tokens=limit, **options)


def select_tools(
    choice: str | None, tools: list[dict[str, Any]], *, name: str | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """Return ``none``, ``auto`` or ``required``, and the tools that may be called. Raises ApiError 400.

    Args:
        choice: the client's choice; None is ``auto``.
        tools: the offered tools.
        name: the one tool that must be called.
    """
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "two tools have one name", param="tools")
    if not tools:
        if name is not None or choice not in (None, "none", "auto"):
            raise ApiError(400, "tool_choice asks for a call, but there are no tools", param="tool_choice")
        return "none", []
    if name is not None:
        selected = [tool for tool in tools if tool["function"]["name"] == name]
        if not selected:
            raise ApiError(400, f"no tool {name!r}; there is {', '.join(names)}", param="tool_choice")
        return "required", selected
    return choice or "auto", tools


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the stop strings, without empty ones. Raises ApiError 400."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise ApiError(400, f"at most {MAX_STOP_STRINGS} stop strings", param="stop")
    return tuple(string for string in strings if string)
