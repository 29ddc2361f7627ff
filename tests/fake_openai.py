"""An OpenAI-compatible server of a chosen cache design, in this process, on a clock that it moves itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

REQUEST_S = 0.004
TOKEN_S = 0.001
SQUARED_TOKEN_S = 2e-7
DECODE_S = 0.01
REPLY_WORDS = "we found the report in the second drawer of the desk near the window and put it back"


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Design:
    """A cache: what it holds, how it finds it, and what it tells.

    Attributes:
        block: Prefixes are found in multiples of this.
        capacity: Prompts held; None for no limit. They leave first in, first out; reading does not refresh.
        keeps_reply: Generated tokens are held, too.
        steals: A prompt found as a prefix is cut there, and its rest is lost.
        keeps_after_edit: Equal tokens after a difference are taken from the cache, too.
        sorts_tools: Tools are written in the order of their names.
        drops_billing: A billing line is left out of the prompt.
        writes_thinking: ``always``, ``loop`` (after the last user message only) or ``never``.
        writes_tools: The template writes tools.
        takes_tool_messages: Else messages of role tool are refused.
        reports: ``true``, ``nothing`` (no field), ``silence_at_zero`` (no field for 0), or ``lie`` (claims every repeat
            in full, but computes all).
        counts: Usage says prompt tokens.
        reply_words: After so many words the model ends its answer by itself.
        noise: Factors of successive TTFTs, used in rotation.
    """

    block: int = 1
    capacity: int | None = None
    keeps_reply: bool = True
    steals: bool = False
    keeps_after_edit: bool = False
    sorts_tools: bool = False
    drops_billing: bool = False
    writes_thinking: str = "loop"
    writes_tools: bool = True
    takes_tool_messages: bool = True
    reports: str = "true"
    counts: bool = True
    reply_words: int = 1000
    noise: tuple[float, ...] = (1.0,)


class FakeServer:
    """Answers as ``httpx.MockTransport(server)``; a token is a word."""

    def __init__(
        self, design: Design, clock: Clock, *, key: str = "", models: Sequence[str] = ("fake",), error: str = ""
    ) -> None:
        self.design, self.clock, self.key, self.models, self.error = design, clock, key, list(models), error
        self.held: list[list[str]] = []
        self.requests = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _failed(401, "a key, please")
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": name} for name in self.models]})
        if request.url.path != "/v1/chat/completions":
            return _failed(404, "not found")
        body = json.loads(request.content)
        if body.get("model") not in (*self.models, None):
            return _failed(404, f"no model {body['model']}")
        if self.error:
            return _failed(500, self.error)
        if not self.design.takes_tool_messages and any(m["role"] == "tool" for m in body["messages"]):
            return _failed(400, "conversation roles must alternate")
        self.requests += 1
        return httpx.Response(200, stream=_Stream(self._answer(body)))

    def _answer(self, body: Mapping[str, Any]) -> Iterator[bytes]:
        design = self.design
        prompt = self._prompt(body)
        cached = self._find(prompt)
        computed = len(prompt) - (0 if design.reports == "lie" else cached)
        start = len(prompt) - computed
        work = TOKEN_S * computed + SQUARED_TOKEN_S * (len(prompt) ** 2 - start**2)
        self.clock.now += (REQUEST_S + work) * design.noise[self.requests % len(design.noise)]
        words = (REPLY_WORDS.split() * 100)[: min(body["max_tokens"], design.reply_words)]
        for number, word in enumerate(words):
            self.clock.now += DECODE_S if number else 0
            yield _event({"choices": [{"index": 0, "delta": {"content": f"{' ' if number else ''}{word}"}}]})
        self._hold(prompt + (words[:-1] if design.keeps_reply else []))
        yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        yield _event({"choices": [], "usage": self._usage(len(prompt), len(words), cached)})
        yield b"data: [DONE]\n\n"

    def _usage(self, prompt: int, completion: int, cached: int) -> dict[str, Any]:
        usage: dict[str, Any] = {"completion_tokens": completion}
        usage |= {"prompt_tokens": prompt} if self.design.counts else {}
        if self.design.reports in ("true", "lie") or (self.design.reports == "silence_at_zero" and cached):
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage

    def _prompt(self, body: Mapping[str, Any]) -> list[str]:
        """Write the prompt as words, as a template does."""
        design, tokens = self.design, []
        tools = body.get("tools") or []
        if tools and design.writes_tools:
            order = sorted(tools, key=lambda tool: tool["function"]["name"]) if design.sorts_tools else tools
            tokens += ["<tools>", *(word for tool in order for word in json.dumps(tool).split())]
        messages = body["messages"]
        last_user = max(i for i, m in enumerate(messages) if m["role"] in ("user", "system"))
        for place, message in enumerate(messages):
            content = message.get("content") or ""
            if design.drops_billing and content.startswith("x-anthropic-billing-header"):
                content = content.partition("\n")[2]
            tokens += ["<start>", message["role"], *self._thinking(message, place > last_user), *content.split()]
            for call in message.get("tool_calls") or []:
                tokens += [call["function"]["name"], *call["function"]["arguments"].split()]
            tokens.append("<end>")
        return [*tokens, "<start>", "assistant"]

    def _thinking(self, message: Mapping[str, Any], in_loop: bool) -> list[str]:
        written = {"always": True, "loop": in_loop, "never": False}[self.design.writes_thinking]
        return str(message.get("reasoning_content") or "").split() if written else []

    def _find(self, prompt: list[str]) -> int:
        """Return the tokens that need not be computed."""
        best, source = 0, None
        for held in self.held:
            common = _common(prompt, held)
            if common > best:
                best, source = common, held
        if source is not None and self.design.keeps_after_edit:
            best += _common(prompt[best:][::-1], source[best:][::-1])
        found = min(best, len(prompt) - 1)
        if source is not None and self.design.steals:
            del source[best:]
        return found // self.design.block * self.design.block

    def _hold(self, tokens: list[str]) -> None:
        """Keep a sequence; what is a prefix of it, or equal, leaves its place in the order to it only if equal."""
        if self.design.capacity == 0:
            return
        if tokens in self.held:
            return
        self.held = [held for held in self.held if _common(held, tokens) < len(held)] + [tokens]
        if self.design.capacity is not None:
            self.held = self.held[-self.design.capacity :]


class _Stream(httpx.SyncByteStream):
    """Passes pieces on when they are read, so that time passes between them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


def _common(one: Sequence[str], two: Sequence[str]) -> int:
    same = 0
    for a, b in zip(one, two, strict=False):
        if a != b:
            break
        same += 1
    return same


def _event(piece: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(piece)}\n\n".encode()


def _failed(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message}})
