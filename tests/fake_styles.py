"""Servers that write the protocol as others do: the fake chat server with every answer put in another form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.fake_chat_server import FakeChatServer

Json = dict[str, Any]


@dataclass
class Styled(httpx.BaseTransport):
    """Passes requests on to ``server`` and rewrites what it answers. A subclass is the style of one server."""

    server: FakeChatServer = field(default_factory=lambda: FakeChatServer(context=4000))
    lists_models = True
    ends_with_done = True

    def event(self, piece: Json, number: int) -> Iterator[bytes]:
        """Yield the bytes that stand for one event of a stream."""
        yield b"data: " + json.dumps(piece).encode() + b"\n\n"

    def whole(self, answer: Json) -> Json:
        """Return the form of an answer that is not streamed."""
        return answer

    def error(self, status: int, message: str) -> httpx.Response:
        """Return the form of an error."""
        return httpx.Response(status, json={"error": {"message": message}})

    def check(self, body: Json) -> str:
        """Return why a request is refused; empty where it is not."""
        return ""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models" and not self.lists_models:
            return httpx.Response(404, text="404 page not found")
        if request.method == "POST" and (reason := self.check(json.loads(request.content))):
            return self.error(400, reason)
        answered = self.server.handle_request(request)
        if answered.status_code != 200 and request.method == "POST":
            return self.error(answered.status_code, answered.json()["error"]["message"])
        if request.method != "POST":
            return answered
        if not answered.headers.get("content-type", "").startswith("text/event-stream"):
            return httpx.Response(200, json=self.whole(answered.json()))
        return httpx.Response(200, headers=answered.headers, stream=_Rewritten(answered, self))


class _Rewritten(httpx.SyncByteStream):
    def __init__(self, answered: httpx.Response, style: Styled) -> None:
        self._answered, self._style = answered, style

    def __iter__(self) -> Iterator[bytes]:
        number = 0
        for line in self._answered.iter_lines():
            if line.startswith("data: {"):
                yield from self._style.event(json.loads(line[6:]), number)
                number += 1
            elif line.startswith("data: [DONE]") and self._style.ends_with_done:
                yield b"data: [DONE]\n\n"

    def close(self) -> None:
        self._answered.close()


class VLLM(Styled):
    """Usage null in all events but the last, details null, and logprobs null where none were asked for."""

    def event(self, piece: Json, number: int) -> Iterator[bytes]:
        piece = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "usage": None, "prompt_logprobs": None} | piece
        if piece["usage"]:
            piece["usage"] = piece["usage"] | {"prompt_tokens_details": None}
        for choice in piece["choices"]:
            choice |= {"logprobs": choice.get("logprobs"), "stop_reason": None}
            if choice.get("delta") is not None:
                choice["delta"] = {"tool_calls": [], "reasoning": None} | choice["delta"]
        yield from super().event(piece, number)

    def whole(self, answer: Json) -> Json:
        for choice in answer["choices"]:
            choice |= {"logprobs": choice.get("logprobs"), "stop_reason": None}
            if "message" in choice:
                choice["message"] = {"reasoning": None, "tool_calls": [], "refusal": None} | choice["message"]
        return answer | {"usage": answer["usage"] | {"prompt_tokens_details": None}, "prompt_logprobs": None}


class LMStudio(Styled):
    """No usage in streams, none of cached tokens anywhere, a role in every delta, and errors as plain text."""

    def event(self, piece: Json, number: int) -> Iterator[bytes]:
        if not piece["choices"]:
            return
        for choice in piece["choices"]:
            if choice.get("delta") is not None:
                choice["delta"] = {"role": "assistant"} | choice["delta"]
        yield from super().event(piece | {"system_fingerprint": "fake"}, number)

    def whole(self, answer: Json) -> Json:
        counts = {key: value for key, value in answer["usage"].items() if key != "prompt_tokens_details"}
        return answer | {"usage": counts, "stats": {}}

    def error(self, status: int, message: str) -> httpx.Response:
        return httpx.Response(status, json={"error": message})


class Ollama(Styled):
    """A model must be named, content is never left out, usage has no details, and no logprobs come."""

    def __init__(self) -> None:
        super().__init__(FakeChatServer(context=4000, logprobs=False, reports_cached=False))

    def check(self, body: Json) -> str:
        return "" if body.get("model") else "model is required"

    def event(self, piece: Json, number: int) -> Iterator[bytes]:
        for choice in piece["choices"]:
            if choice.get("delta") is not None:
                choice["delta"] = {"role": "assistant", "content": ""} | choice["delta"]
        yield from super().event(piece, number)


class Sparse(Styled):
    """No list of models, no end mark, no usage at all, comments and pings, CRLF, and null where nothing is."""

    lists_models = False
    ends_with_done = False

    def event(self, piece: Json, number: int) -> Iterator[bytes]:
        yield b": keep-alive\r\n\r\n"
        if number % 2:
            yield b"event: ping\r\ndata: {}\r\n\r\n"
        if not piece["choices"]:
            yield b'data: {"choices": null, "usage": null}\r\n\r\n'
            return
        for choice in piece["choices"]:
            if not choice.get("delta") and "delta" in choice:
                choice["delta"] = None
        yield b"data:" + json.dumps(piece | {"usage": None, "error": None}).encode() + b"\r\n\r\n"

    def whole(self, answer: Json) -> Json:
        return answer | {"usage": None}

    def error(self, status: int, message: str) -> httpx.Response:
        return httpx.Response(status, text=message)


class TwoRoles(Styled):
    """The first two deltas have a role, and usage comes with the last piece of text."""

    def event(self, piece: Json, number: int) -> Iterator[bytes]:
        if number == 1 and piece["choices"][0].get("delta") is not None:
            piece["choices"][0]["delta"]["role"] = "assistant"
        yield from super().event(piece, number)


STYLES = (VLLM, LMStudio, Ollama, Sparse, TwoRoles)
