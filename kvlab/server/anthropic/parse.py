"""From Anthropic's messages to the conversations that chat templates know, and to a generation request."""

from __future__ import annotations

import json
from typing import Any

from kvlab.server.anthropic.types import ContentBlock, CountRequest, InputMessage, InputTool, MessagesRequest
from kvlab.server.errors import ApiError
from kvlab.server.generation.parse import chat_request, select_tools, stop_strings
from kvlab.server.generation.request import GenerationRequest
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.settings import Settings

TemplateMessage = dict[str, Any]
BILLING_PREFIX = "x-anthropic-billing-header"
"""Begins a system block of Claude Code that changes with every request and carries no instruction."""
TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def parse_messages(body: MessagesRequest, model: ServedModel, settings: Settings) -> list[GenerationRequest]:
    """Render and check a request. Raises ApiError 400."""
    messages, tools, options = conversation(body)
    choice = body.tool_choice
    if choice is not None and choice.type == "tool":
        tool_choice, callable_tools = select_tools(None, tools, name=choice.name or "")
    else:
        tool_choice, callable_tools = select_tools(None if choice is None else TOOL_CHOICES[choice.type], tools)
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
        sampling=base._replace(
            temperature=base.temperature if body.temperature is None else body.temperature,
            top_p=base.top_p if body.top_p is None else body.top_p,
            top_k=base.top_k if body.top_k is None else body.top_k,
        ),
        stop=stop_strings(body.stop_sequences),
        tool_choice=tool_choice,
        tools=tuple(callable_tools),
        parallel_calls=choice is None or not choice.disable_parallel_tool_use,
    )
    return [request]


def conversation(body: CountRequest) -> tuple[list[TemplateMessage], list[TemplateMessage], dict[str, Any]]:
    """Return messages, tools and template options. Raises ApiError 400 for blocks that no template knows."""
    messages: list[TemplateMessage] = []
    blocks = [ContentBlock(type="text", text=body.system)] if isinstance(body.system, str) else body.system or []
    system = "\n".join(_text(block) for block in blocks if not block.text.startswith(BILLING_PREFIX))
    if system:
        messages.append({"role": "system", "content": system})
    for turn in body.messages:
        messages += _turn(turn)
    thinking = body.thinking is not None and body.thinking.type != "disabled"
    return messages, [_tool(tool) for tool in body.tools or []], {"enable_thinking": thinking}


def _turn(turn: InputMessage) -> list[TemplateMessage]:
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role != "assistant":
        return _user_turn(turn)
    message: TemplateMessage = {"role": "assistant", "content": ""}
    for block in turn.content:
        if block.type == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + block.thinking
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            message.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})
        elif block.type != "redacted_thinking":
            message["content"] += _text(block)
    return [message]


def _user_turn(turn: InputMessage) -> list[TemplateMessage]:
    """Make one message of each tool result, and one of the user's text after them."""
    messages: list[TemplateMessage] = []
    texts = []
    for block in turn.content:
        if not isinstance(block, str) and block.type == "tool_result":
            parts = [{"type": "text", "text": block.content}] if isinstance(block.content, str) else block.content or []
            text = "\n".join(_text(ContentBlock(**part)) for part in parts)
            messages.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
        elif not isinstance(block, str):
            texts.append(_text(block))
    if texts:
        messages.append({"role": turn.role, "content": "\n".join(texts)})
    return messages


def _text(block: ContentBlock) -> str:
    if block.type != "text":
        raise ApiError(400, f"content of type {block.type!r} is not supported: these models read text")
    return block.text


def _tool(tool: InputTool) -> TemplateMessage:
    if tool.input_schema is None:
        raise ApiError(400, f"tool {tool.name!r} has no input_schema: tools that run at the provider are not supported")
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}
