"""Anthropic's messages as the conversations that chat templates know, and answers back in Anthropic's shapes."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from kvlab.server.anthropic.types import ContentBlock, CountRequest, InputMessage, InputTool, MessagesRequest
from kvlab.server.errors import ApiError
from kvlab.server.generation.request import Called, Ended, GenerationRequest, Text
from kvlab.server.generation.served_model import ServedModel
from kvlab.server.http import sse
from kvlab.server.logs import log
from kvlab.server.openai.parse import chosen_tools, make_ask, stops
from kvlab.server.openai.types import NamedFunction, NamedTool
from kvlab.server.service import Session, figures
from kvlab.server.settings import Settings

Message = dict[str, Any]
BILLING = "x-anthropic-billing-header"
"""Begins a system block of Claude Code that changes with every request and means nothing to a model."""
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def ask_messages(body: MessagesRequest, model: ServedModel, settings: Settings) -> list[GenerationRequest]:
    """Render and check a request. Raises ApiError 400."""
    messages, tools, options = conversation(body)
    choice = body.tool_choice
    wanted: str | NamedTool | None = None
    if choice is not None:
        if choice.type == "tool":
            wanted = NamedTool(function=NamedFunction(name=choice.name or ""))
        else:
            wanted = {"auto": "auto", "any": "required", "none": "none"}[choice.type]
    call, callable_tools = chosen_tools(wanted, tools)
    if call == "required":
        options["enable_thinking"] = False
    base = model.defaults
    ask = make_ask(
        model,
        settings,
        messages,
        tools if call != "none" else [],
        template_options=options,
        max_tokens=body.max_tokens,
        sampling=base._replace(
            temperature=base.temperature if body.temperature is None else body.temperature,
            top_p=base.top_p if body.top_p is None else body.top_p,
            top_k=base.top_k if body.top_k is None else body.top_k,
        ),
        stop=stops(body.stop_sequences),
        call=call,
        tools=tuple(callable_tools),
        many=choice is None or not choice.disable_parallel_tool_use,
    )
    return [ask]


def conversation(body: CountRequest) -> tuple[list[Message], list[Message], dict[str, Any]]:
    """Messages, tools and template options. Raises ApiError 400 for blocks that no template knows."""
    messages: list[Message] = []
    blocks = [ContentBlock(type="text", text=body.system)] if isinstance(body.system, str) else body.system or []
    system = "\n".join(_text(block) for block in blocks if not block.text.startswith(BILLING))
    if system:
        messages.append({"role": "system", "content": system})
    for turn in body.messages:
        messages += _turn(turn)
    thinking = body.thinking is not None and body.thinking.type != "disabled"
    return messages, [_tool(tool) for tool in body.tools or []], {"enable_thinking": thinking}


def _turn(turn: InputMessage) -> list[Message]:
    if isinstance(turn.content, str):
        return [{"role": turn.role, "content": turn.content}]
    if turn.role != "assistant":
        return _user_turn(turn)
    message: Message = {"role": "assistant", "content": ""}
    for block in turn.content:
        if block.type == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + block.thinking
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
            message.setdefault("tool_calls", []).append({"id": block.id, "type": "function", "function": function})
        elif block.type != "redacted_thinking":
            message["content"] += _text(block)
    return [message]


def _user_turn(turn: InputMessage) -> list[Message]:
    """Results of tools become messages of their own; what the user says besides follows them."""
    made: list[Message] = []
    texts = []
    for block in turn.content:
        if not isinstance(block, str) and block.type == "tool_result":
            parts = [{"type": "text", "text": block.content}] if isinstance(block.content, str) else block.content or []
            text = "\n".join(_text(ContentBlock(**part)) for part in parts)
            made.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": text})
        elif not isinstance(block, str):
            texts.append(_text(block))
    if texts:
        made.append({"role": turn.role, "content": "\n".join(texts)})
    return made


def _text(block: ContentBlock) -> str:
    if block.type != "text":
        raise ApiError(400, f"content of type {block.type!r} is not supported: these models read text")
    return block.text


def _tool(tool: InputTool) -> Message:
    if tool.input_schema is None:
        raise ApiError(400, f"tool {tool.name!r} has no input_schema: tools that run at the provider are not supported")
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


class Answer:
    """One answer: whole, or as the events of a stream."""

    def __init__(self, session: Session, *, details: bool) -> None:
        self._session, self._details = session, details

    async def whole(self) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        async with self._session as session:
            async for event in session.events():
                if isinstance(event, Ended):
                    return {**self._message(), "content": content, **self._reason(event), **self._figures(event)}
                if isinstance(event, Called):
                    content.append({**self._tool_use(event), "input": json.loads(event.call.arguments)})
                elif isinstance(event, Text) and event.text:
                    kind = "thinking" if event.reasoning else "text"
                    if not content or content[-1]["type"] != kind:
                        content.append(_empty(kind))
                    content[-1][kind] += event.text
        raise ApiError(500, "the answer has no end")

    async def stream(self) -> AsyncGenerator[bytes, None]:
        open_kind, index = "", -1
        async with self._session as session:
            try:
                start = self._message() | {"content": [], "stop_reason": None, "stop_sequence": None}
                tokens = sum(len(ask.prompt.ids) for ask in session.asks)
                start["usage"] = {"input_tokens": tokens, "output_tokens": 0}
                yield _event("message_start", message=start)
                async for event in session.events():
                    kind = _kind(event)
                    if not kind or (isinstance(event, Text) and not event.text):
                        yield _event("ping")
                        continue
                    if open_kind and (kind != open_kind or kind == "tool_use"):
                        yield _event("content_block_stop", index=index)
                        open_kind = ""
                    if isinstance(event, Ended):
                        yield _event("message_delta", delta=self._reason(event), **self._figures(event))
                        break
                    if not open_kind:
                        open_kind, index = kind, index + 1
                        block = {**self._tool_use(event), "input": {}} if isinstance(event, Called) else _empty(kind)
                        yield _event("content_block_start", index=index, content_block=block)
                    yield _event("content_block_delta", index=index, delta=_delta(event))
                yield _event("message_stop")
            except ApiError as error:
                yield sse(error.body("/v1/messages"), "error")
            except Exception as error:  # noqa: BLE001 - the status is out: all that is left is to say so
                log("failed", level=40, request=session.request, error=type(error).__name__)
                yield sse(ApiError(500, "the server failed while answering").body("/v1/messages"), "error")

    def _message(self) -> dict[str, Any]:
        return {"id": self._session.request, "type": "message", "role": "assistant", "model": self._session.model.name}

    def _tool_use(self, event: Called) -> dict[str, Any]:
        return {"type": "tool_use", "id": event.id.replace("call_", "toolu_"), "name": event.call.name}

    def _reason(self, event: Ended) -> dict[str, Any]:
        reason = "stop_sequence" if event.stopped is not None else REASONS[event.reason]
        return {"stop_reason": reason, "stop_sequence": event.stopped}

    def _figures(self, event: Ended) -> dict[str, Any]:
        done = event.completion
        made: dict[str, Any] = {
            # In this protocol input_tokens are those not read from a cache; the three add up to the prompt.
            "usage": {
                "input_tokens": done.prompt_tokens - done.cached_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": done.cached_tokens,
                "output_tokens": event.tokens,
            }
        }
        if self._details:
            made["kvlab"] = {"policy": str(self._session.model.policy), **figures(event)}
        return made


def _kind(event: object) -> str:
    if isinstance(event, Text):
        return "thinking" if event.reasoning else "text"
    return {Called: "tool_use", Ended: "end"}.get(type(event), "")  # type: ignore[call-overload, no-any-return]


def _empty(kind: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": "", "signature": ""} if kind == "thinking" else {"type": "text", "text": ""}


def _delta(event: object) -> dict[str, Any]:
    if isinstance(event, Called):
        return {"type": "input_json_delta", "partial_json": event.call.arguments}
    if isinstance(event, Text) and event.reasoning:
        return {"type": "thinking_delta", "thinking": event.text}
    return {"type": "text_delta", "text": event.text if isinstance(event, Text) else ""}


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)
