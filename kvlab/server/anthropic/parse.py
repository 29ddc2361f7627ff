"""From Anthropic's messages to the conversations that chat templates know, and to a generation request."""

from __future__ import annotations

from typing import Any

from kvlab.models.templates import TemplateMessage
from kvlab.server.anthropic.types import ContentBlock, CountRequest, InputMessage, InputTool, MessagesRequest
from kvlab.server.errors import ApiError
from kvlab.server.generation.parse import chat_request, stop_strings
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.generation.tool_choice import choose_tools
from kvlab.server.settings import Settings


def parse_messages(
    body: MessagesRequest, model: ServedModel, settings: Settings, tenant: str = ""
) -> list[GenerationRequest]:
    """Render and check a request of one client. Raises ApiError 400."""
    messages, tools, options = conversation(body)
    tool_choice, callable_tools = choose_tools(body.tool_choice, tools)
    if tool_choice == "required":
        options["enable_thinking"] = False
    base = model.defaults
    request = chat_request(
        model,
        settings,
        messages,
        tools if tool_choice != "none" else [],
        template_options=options,
        max_tokens=body.max_tokens,
        tenant=tenant,
        sampling=base._replace(
            temperature=base.temperature if body.temperature is None else body.temperature,
            top_p=base.top_p if body.top_p is None else body.top_p,
            top_k=base.top_k if body.top_k is None else body.top_k,
        ),
        stop=stop_strings(body.stop_sequences),
        tool_choice=tool_choice,
        tools=tuple(callable_tools),
        parallel_calls=not (isinstance(body.tool_choice, dict) and body.tool_choice.get("disable_parallel_tool_use")),
    )
    return [request]


def conversation(body: CountRequest) -> tuple[list[TemplateMessage], list[TemplateMessage], dict[str, Any]]:
    """Return messages, tools and template options. Raises ApiError 400 for blocks that no template knows."""
    messages: list[TemplateMessage] = []
    if body.system:
        messages.append({"role": "system", "content": _parts(body.system)})
    for turn in body.messages:
        messages += _turn(turn)
    thinking = body.thinking is not None and body.thinking.type != "disabled"
    return messages, [_tool(tool) for tool in body.tools or []], {"enable_thinking": thinking}


def _turn(turn: InputMessage) -> list[TemplateMessage]:
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role != "assistant":
        return _user_turn(turn.role, turn.content)
    message: TemplateMessage = {"role": "assistant", "content": []}
    for block in turn.content:
        if block.type == "tool_use":
            function = {"name": block.name, "arguments": block.input}
            message.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})
        else:
            message["content"].append(_part(block))
    return [message]


def _user_turn(role: str, content: list[ContentBlock]) -> list[TemplateMessage]:
    """Make one message of each tool result, and one of the user's text after them."""
    messages: list[TemplateMessage] = []
    parts: list[ContentBlock] = []
    for block in content:
        if block.type == "tool_result":
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": block.content or ""})
        else:
            parts.append(block)
    if parts:
        messages.append({"role": role, "content": _parts(parts)})
    return messages


def _parts(content: str | list[ContentBlock]) -> str | list[TemplateMessage]:
    return content if isinstance(content, str) else [_part(block) for block in content]


def _part(block: ContentBlock) -> TemplateMessage:
    return block.model_dump(exclude_unset=True)


def _tool(tool: InputTool) -> TemplateMessage:
    if tool.input_schema is None:
        raise ApiError(400, f"tool {tool.name!r} has no input_schema: tools that run at the provider are not supported")
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}
