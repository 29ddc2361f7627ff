"""Answers in Anthropic's shapes: whole messages, and the events of a stream."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.generation.request import ChoiceEnd, TextDelta, ToolCallEvent
from kvlab.server.http import sse
from kvlab.server.logs import log
from kvlab.server.service import GenerationSession, answer_details

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageResponse:
    """The answer to one request: whole, or as the events of a stream."""

    def __init__(self, session: GenerationSession, *, details: bool) -> None:
        self.session, self._details = session, details

    async def whole(self) -> dict[str, Any]:
        """Return the complete message."""
        content: list[dict[str, Any]] = []
        async with self.session as session:
            async for event in session.events():
                if isinstance(event, ChoiceEnd):
                    return {**self._message(), "content": content, **self._reason(event), **self._usage(event)}
                if isinstance(event, ToolCallEvent):
                    content.append({**self._tool_use(event), "input": json.loads(event.call.arguments)})
                elif isinstance(event, TextDelta) and event.text:
                    kind = "thinking" if event.reasoning else "text"
                    if not content or content[-1]["type"] != kind:
                        content.append(_empty(kind))
                    content[-1][kind] += event.text
        raise ApiError(500, "the answer has no end")

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events; an error in the middle becomes an event."""
        open_kind, index = "", -1
        async with self.session as session:
            try:
                start = self._message() | {"content": [], "stop_reason": None, "stop_sequence": None}
                tokens = sum(len(request.prompt.ids) for request in session.requests)
                start["usage"] = {"input_tokens": tokens, "output_tokens": 0}
                yield _event("message_start", message=start)
                async for event in session.events():
                    kind = _kind(event)
                    if not kind or (isinstance(event, TextDelta) and not event.text):
                        yield _event("ping")
                        continue
                    if open_kind and (kind != open_kind or kind == "tool_use"):
                        yield _event("content_block_stop", index=index)
                        open_kind = ""
                    if isinstance(event, ChoiceEnd):
                        yield _event("message_delta", delta=self._reason(event), **self._usage(event))
                        break
                    if not open_kind:
                        open_kind, index = kind, index + 1
                        block = (
                            {**self._tool_use(event), "input": {}} if isinstance(event, ToolCallEvent) else _empty(kind)
                        )
                        yield _event("content_block_start", index=index, content_block=block)
                    yield _event("content_block_delta", index=index, delta=_delta(event))
                yield _event("message_stop")
            except ApiError as error:
                yield sse(error.body("/v1/messages"), "error")
            except Exception as error:  # noqa: BLE001 - the status is sent: only an event can report it
                log("failed", level=40, request=session.request_id, error=type(error).__name__)
                yield sse(ApiError(500, "the server failed while answering").body("/v1/messages"), "error")

    def _message(self) -> dict[str, Any]:
        return {
            "id": self.session.request_id,
            "type": "message",
            "role": "assistant",
            "model": self.session.model.name,
        }

    def _tool_use(self, event: ToolCallEvent) -> dict[str, Any]:
        return {"type": "tool_use", "id": event.id.replace("call_", "toolu_"), "name": event.call.name}

    def _reason(self, event: ChoiceEnd) -> dict[str, Any]:
        reason = "stop_sequence" if event.stopped is not None else STOP_REASONS[event.reason]
        return {"stop_reason": reason, "stop_sequence": event.stopped}

    def _usage(self, event: ChoiceEnd) -> dict[str, Any]:
        completion = event.completion
        fields: dict[str, Any] = {
            # In this protocol input_tokens excludes cached tokens; the three numbers add up to the prompt.
            "usage": {
                "input_tokens": completion.prompt_tokens - completion.cached_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": completion.cached_tokens,
                "output_tokens": event.tokens,
            }
        }
        if self._details:
            fields["kvlab"] = {"policy": str(self.session.model.policy), **answer_details(event)}
        return fields


def _kind(event: object) -> str:
    if isinstance(event, TextDelta):
        return "thinking" if event.reasoning else "text"
    return {ToolCallEvent: "tool_use", ChoiceEnd: "end"}.get(type(event), "")  # type: ignore[call-overload, no-any-return]


def _empty(kind: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": "", "signature": ""} if kind == "thinking" else {"type": "text", "text": ""}


def _delta(event: object) -> dict[str, Any]:
    if isinstance(event, ToolCallEvent):
        return {"type": "input_json_delta", "partial_json": event.call.arguments}
    if isinstance(event, TextDelta) and event.reasoning:
        return {"type": "thinking_delta", "thinking": event.text}
    return {"type": "text_delta", "text": event.text if isinstance(event, TextDelta) else ""}


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, kind)
