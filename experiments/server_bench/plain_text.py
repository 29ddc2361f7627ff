"""An agent's requests for models whose chat template knows no tools: all of it as text, alike for every server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvlab.models import LoadedModel
from kvlab.workloads import WorkloadRequest


def body_of(request: WorkloadRequest, model: LoadedModel) -> dict[str, Any]:
    """Messages, and tools where the model's template shows them."""
    messages = list(request.messages)
    if not request.tools or _shows(request.tools, model):
        return {"messages": messages, **({"tools": list(request.tools)} if request.tools else {})}
    return {"messages": as_text(messages, request.tools)}


def as_text(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools stand in the system prompt, a call is the assistant's text, its result a message of the user."""
    described = "\n".join(json.dumps(tool["function"]) for tool in tools)
    written = []
    for message in messages:
        role, content = message["role"], message.get("content") or ""
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        if role == "system":
            content = f"{content}\n\nTools, one a line:\n{described}"
        elif calls:
            content = "\n".join([content, *map(json.dumps, calls)]).strip()
        written.append({"role": "user" if role == "tool" else role, "content": content})
    return written


def _shows(tools: Sequence[Mapping[str, Any]], model: LoadedModel) -> bool:
    hello = [{"role": "user", "content": "hello"}]
    return model.render(hello, list(tools)) != model.render(hello)
