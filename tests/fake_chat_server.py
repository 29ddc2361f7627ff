"""A server without a model, in this process and on a clock of its own: it caches prefixes, and misbehaves as told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.fake_chat_text import Faults, call_head, calls_of, common_words, next_word, pieces, prompt_words

LOGPROB = -0.25
"""Of every token: far from a tie."""


@dataclass
class FakeChatServer(httpx.BaseTransport):
    """Tokens are words. A prompt token that is not cached costs ``token_s``, an answer's token ``step_s``.

    ``clock`` and ``sleep`` go with the client. ``crowds``: sizes of groups of requests that come at once, in order; the
    streams of a group begin before any of them ends, as far as there are slots.
    """

    faults: Faults = Faults()
    context: int | None = None
    lists_context: bool = True
    logprobs: bool = True
    reports_cached: bool = True
    restarts_at: Path | None = None
    crowds: Sequence[int] = ()
    token_s: float = 0.001
    step_s: float = 0.0
    base_s: float = 0.01
    now_s: float = 0.0
    alive: bool = True
    restarted: bool = False
    cache: list[list[str]] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    left_work_s: float = 0.0

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._slots = threading.Semaphore(self.faults.slots)
        self._running = 0
        self._barriers = iter(self._make_barriers())

    def _make_barriers(self) -> Iterator[threading.Barrier]:
        for size in self.crowds:
            together = min(size, self.faults.slots)
            for _ in range(size // together):
                barrier = threading.Barrier(together)
                for _ in range(together):
                    yield barrier

    def clock(self) -> float:
        """Seconds of the fake clock."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let the clock go on; what was left behind is worked off meanwhile."""
        with self._lock:
            self.now_s += seconds
            self.left_work_s = max(0.0, self.left_work_s - seconds)

    # -- HTTP -------------------------------------------------------------------------------------------------------

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.restarts_at is not None and self.restarts_at.exists():
            self.restarts_at.unlink()
            self._restart()
        if not self.alive:
            raise httpx.ConnectError("connection refused", request=request)
        path = request.url.path
        if path == "/v1/models":
            listed = {"id": "fake"} | ({"max_model_len": self.context} if self.context and self.lists_context else {})
            return httpx.Response(200, json={"data": [listed]})
        if path not in ("/v1/chat/completions", "/v1/completions"):
            return httpx.Response(404, json={"error": {"message": "no such path"}})
        body = json.loads(request.content)
        tokens = prompt_words(body)
        refusal = self._refusal(tokens, body)
        if refusal is not None:
            return refusal
        return self._answer(request, body, tokens, is_chat=path.endswith("chat/completions"))

    def _restart(self) -> None:
        self.restarted = True
        self.alive = not self.faults.never_comes_back
        if self.faults.keeps_nothing:
            self.cache.clear()

    def _refusal(self, tokens: list[str], body: Mapping[str, Any]) -> httpx.Response | None:
        if self.context is None:
            return None
        faults = self.faults
        too_long = len(tokens) > self.context and not faults.cuts_prompts
        over = len(tokens) + body["max_tokens"] > self.context and faults.refuses_long_answers
        if not too_long and not over:
            return None
        if faults.breaks_on_long_prompts:
            return httpx.Response(500, text="Internal Server Error")
        told = f"the prompt has {len(tokens)} tokens, but the context is {self.context}"
        return httpx.Response(400, json={"error": {"message": "bad request" if faults.vague_errors else told}})

    # -- prefill ----------------------------------------------------------------------------------------------------

    def _answer(
        self, request: httpx.Request, body: Mapping[str, Any], tokens: list[str], *, is_chat: bool
    ) -> httpx.Response:
        if self.faults.cuts_prompts and self.context is not None:
            tokens = tokens[-self.context :]
        with self._lock:
            barrier = next(self._barriers, None) if body["max_tokens"] > 1 else None
            self._running += 1
            refused = self._running > self.faults.refuses_beyond
        if barrier is not None and self.faults.refuses_beyond < sum(self.crowds):
            barrier.wait(30)  # until all of the group are there
            barrier = None
        if refused:
            with self._lock:
                self._running -= 1
            return httpx.Response(503, json={"error": {"message": "too busy"}}, headers={"retry-after": "1"})
        self._slots.acquire()
        cached = self._prefill(request, tokens)
        words, finish = self._words(tokens, body, cached)
        with self._lock:
            self.cache.append([*tokens, *words])
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(words)}
        usage["total_tokens"] = sum(usage.values())
        told: dict[str, Any] = dict(usage)
        if self.reports_cached:
            told["prompt_tokens_details"] = {"cached_tokens": cached}
        calls = calls_of(body, self.faults)
        if not body.get("stream"):
            self._end()
            return httpx.Response(200, json=self._whole(words, finish, told, calls, body, is_chat=is_chat))
        lines = self._lines(words, finish, told, calls, body, barrier, is_chat=is_chat)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=_Stream(lines, self._end))

    def _end(self) -> None:
        with self._lock:
            self._running -= 1
        self._slots.release()

    def _prefill(self, request: httpx.Request, tokens: list[str]) -> int:
        """Return cached tokens once the rest is computed, on the fake clock. Leaves when the client does."""
        with self._lock:
            cached = max((common_words(tokens, known) for known in self.cache), default=0)
            if self.faults.dies_after_exact_hit and tokens in self.cache:
                self.alive = False
                self._end()
                raise httpx.RemoteProtocolError("server disconnected", request=request)
            cached = min(cached, len(tokens) - 1)
            computed = len(tokens) if self.faults.claims_without_speed else len(tokens) - cached
            work_s = self.base_s + self.left_work_s + computed * self.token_s
            self.left_work_s = 0.0
            limit_s = request.extensions["timeout"]["read"]
            if work_s <= limit_s:
                self.now_s += work_s
                return cached
            self.now_s += limit_s
            if self.faults.goes_on_after_abort:
                self.left_work_s = work_s - limit_s
                self.cache.append(tokens)
            elif not self.faults.loses_aborted:
                self.cache.append(tokens[: cached + int(limit_s / self.token_s)])
            self._end()
            raise httpx.ReadTimeout("timed out", request=request)

    # -- answers ----------------------------------------------------------------------------------------------------

    def _words(self, tokens: list[str], body: Mapping[str, Any], cached: int) -> tuple[list[str], str]:
        """Return the answer's words and why it ends."""
        faults, asked = self.faults, body["max_tokens"]
        count = asked + 3 if faults.ignores_max_tokens else asked
        finish = "length"
        if self.context is not None and not faults.slides and len(tokens) + count > self.context:
            count = self.context - len(tokens)
            finish = "stop" if faults.pretends else "length"
        if faults.never_calls and body.get("tools"):
            finish = "stop"
        words: list[str] = []
        while len(words) < count:
            words.append(next_word([*tokens, *words]))
        key = " ".join(tokens)
        self.asked[key] = self.asked.get(key, 0) + 1
        differs = faults.cached_text_differs and cached > len(tokens) // 2
        differs = differs or (faults.unsteady and self.asked[key] % 2 == 0)
        differs = differs or (faults.wrong_after_restart and self.restarted and cached > 0)
        if differs and words:
            words[0] = "wrong"
        if faults.tie and cached > len(tokens) // 2 and words:
            words[-1] = "tied"
        stops = [] if faults.ignores_stop else body.get("stop") or []
        text = " ".join(words)
        for stop in stops:
            if stop in text:
                words, finish = text[: text.index(stop)].split(), "stop"
        return words, finish

    def _logprobs(self, words: Sequence[str]) -> dict[str, Any]:
        return {
            "content": [{"token": word, "logprob": self._logprob(place, words)} for place, word in enumerate(words)]
        }

    def _logprob(self, place: int, words: Sequence[str]) -> float:
        return -0.7 if self.faults.tie and place == len(words) - 1 else LOGPROB

    def _whole(
        self, words: list[str], finish: str, usage: Any, calls: list[Any], body: Mapping[str, Any], *, is_chat: bool
    ) -> dict[str, Any]:
        text = " ".join(words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": self._finish(finish, calls)}
        if not is_chat:
            choice["text"] = f" {text}"
        elif calls:
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": calls}
        else:
            choice["message"] = {"role": "assistant", "content": text}
        if body.get("logprobs") and self.logprobs and is_chat:
            choice["logprobs"] = self._logprobs(words)
        return {"choices": [choice], "usage": usage}

    def _finish(self, finish: str, calls: Sequence[Any]) -> str:
        return "tool_calls" if calls and not self.faults.stops_after_calls else "stop" if calls else finish

    def _lines(
        self,
        words: list[str],
        finish: str,
        usage: Any,
        calls: list[Any],
        body: Mapping[str, Any],
        barrier: threading.Barrier | None,
        *,
        is_chat: bool,
    ) -> Iterator[bytes]:
        """Yield the lines of a stream, the pieces of a call's arguments one by one."""
        faults = self.faults

        def event(delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
            choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
            choice |= {"delta": delta} if is_chat else {"text": delta.get("content", "")}
            choice |= {"logprobs": logprobs} if logprobs else {}
            return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

        role = {"role": "assistant"} if is_chat else {}
        if is_chat and not faults.role_in_each_delta:
            yield event({**role, "content": ""})
        if faults.bad_line:
            yield b"this is no event\n\n"
        for place, word in enumerate([] if calls else self._spoken(words)):
            with self._lock:
                self.now_s += self.step_s
            space = "" if is_chat and place == 0 else " "
            found = None
            if body.get("logprobs") and self.logprobs and is_chat and place < len(words):
                found = {"content": [{"token": word, "logprob": self._logprob(place, words)}]}
            extra = role if faults.role_in_each_delta else {}
            for part in pieces(space + word, split=faults.splits_characters):
                yield event({**extra, "content": part}, None, found)
                found = None
            if place == 0 and barrier is not None:
                barrier.wait(30)
        for index, call in enumerate(calls):
            yield event({"tool_calls": [{**call_head(call), "index": index}]})
            whole = call["function"]["arguments"]
            for piece in whole if isinstance(whole, str) else [whole]:
                yield event({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        if not faults.no_finish:
            yield event({}, self._finish(finish, calls))
        if not faults.no_usage:
            yield b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
        if not faults.no_done:
            yield b"data: [DONE]\n\n"

    def _spoken(self, words: list[str]) -> list[str]:
        return [*words[:-1], "otherwise"] if self.faults.stream_differs else words


class _Stream(httpx.SyncByteStream):
    """Bytes of a stream; ``end`` is called when all are read or the client has left."""

    def __init__(self, lines: Iterator[bytes], end: Any) -> None:
        self._lines, self._end = lines, end
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        yield from self._lines
        self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._end()
