"""``AuditClient``: sends requests to an OpenAI-compatible server and measures its answers. It never raises for them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from kvlab.audit.errors import AuditError

Message = dict[str, Any]

MAX_ERROR_CHARS = 300

PAGE, WHOLE = "text/html", "application/json"
"""Content types of what is no answer of an API, and of an answer in one piece though a stream was asked for."""

WEB_PAGE = "a web page came in place of an answer"


@dataclass(frozen=True)
class Reply:
    """A server's answer to one request, or what went wrong.

    Attributes:
        ttft_s: From sending the request to the first text, thinking or call; to the end where there was none. NaN
            without an answer.
        total_s: From sending the request to its end.
        cached_tokens: What the server reports; None where it reports nothing.
        gaps_s: Seconds between successive pieces of the stream.
        logprobs: Each token with its log probability, where they were asked for and came.
        status: HTTP status; 0 where there was no response.
        error: One line; empty for a complete answer.
    """

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    ttft_s: float = float("nan")
    total_s: float = float("nan")
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    gaps_s: tuple[float, ...] = ()
    logprobs: tuple[tuple[str, float], ...] = ()
    status: int = 0
    error: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the server answered without an error."""
        return self.status == 200 and not self.error


class AuditClient:
    """Speaks to one server. Requests may be sent from several threads.

    Args:
        url: With or without ``/v1``.
        model: Name sent with each request; None sends none.
        timeout_s: For a whole answer.
        clock: Seconds, of any zero.
        transport: For tests; else the network.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        *,
        clock: Callable[[], float] = time.perf_counter,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base = url.rstrip("/")
        if not base.startswith(("http://", "https://")):
            raise AuditError(f"'{url}' is no server's address; write it with http://, as http://127.0.0.1:8080")
        if not _has_host(base):
            raise AuditError(f"'{url}' names no server; write its address, as http://127.0.0.1:8080")
        self.url = base if base.endswith("/v1") else f"{base}/v1"
        self.model, self.timeout_s, self.clock = model, timeout_s, clock
        self.server = ""
        """The server's name for itself, once :meth:`models` was called; empty where it gives none."""
        self.asks_usage = True
        """Whether streams are asked to end with their usage; some servers refuse that."""
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Each request has a connection of its own: one that a server has just closed looks like a server that has died.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.http = httpx.Client(headers=headers, timeout=timeout_s, limits=limits, transport=transport)

    @property
    def stream_fields(self) -> dict[str, Any]:
        """What the body of a streamed request has besides."""
        return {"stream": True, **({"stream_options": {"include_usage": True}} if self.asks_usage else {})}

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def __enter__(self) -> AuditClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int,
        logprobs: bool = False,
        stream: bool = True,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Reply:
        """Ask for a greedy chat answer; ``fields`` are added to the body.

        ``timeout_s`` ends it, as a client that leaves.
        """
        body: dict[str, Any] = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
        body |= {"tools": list(tools)} if tools is not None else {}
        body |= {"logprobs": True, "top_logprobs": 1} if logprobs else {}
        return self.send("/chat/completions", body | fields, stream=stream, timeout_s=timeout_s)

    def complete(self, prompt: str, *, max_tokens: int, stream: bool = True, **fields: Any) -> Reply:
        """Ask for a plain, greedy completion of ``prompt``; ``fields`` are added to the body."""
        body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        return self.send("/completions", body | fields, stream=stream)

    def models(self) -> list[str]:
        """Return the ids that ``/v1/models`` lists; none where the server has no list."""
        try:
            answered = self.http.get(f"{self.url}/models")
            self.server = answered.headers.get("server", "")
            return [str(model["id"]) for model in answered.json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []

    def send(self, path: str, body: Mapping[str, Any], *, stream: bool = True, timeout_s: float | None = None) -> Reply:
        """Post ``body`` to ``path`` (below ``/v1``) and measure the answer."""
        told = dict(body) | ({"model": self.model} if self.model is not None else {})
        told |= self.stream_fields if stream else {}
        limit = self.timeout_s if timeout_s is None else timeout_s
        seen = _Seen(self.clock, self.clock() + limit)
        try:
            with self.http.stream("POST", self.url + path, json=told, timeout=limit) as response:
                seen.status = response.status_code
                if response.status_code != 200:
                    response.read()
                    seen.error = _error_text(response)
                elif PAGE in (kind := response.headers.get("content-type", "")):
                    seen.error = WEB_PAGE
                elif stream and WHOLE not in kind:
                    for piece in _events(response.iter_lines(), seen):
                        seen.take(piece)
                else:
                    seen.take(json.loads(response.read()))
        except httpx.TimeoutException:
            seen.error = f"no answer within {limit:g} s"
        except httpx.HTTPError as error:
            seen.error = f"{type(error).__name__}: {error}".rstrip(": ")
        except ValueError as error:
            seen.error = f"the answer is not JSON: {error}"
        except (AttributeError, KeyError, TypeError) as error:
            seen.error = f"the answer has another form than OpenAI's: {type(error).__name__}: {error}"
        return seen.reply()


class _Seen:
    """What has come of one answer so far."""

    def __init__(self, clock: Callable[[], float], until: float) -> None:
        self.clock, self.until = clock, until
        self.began = clock()
        self.times: list[float] = []
        self.texts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: list[tuple[str, float]] = []
        self.usage: Mapping[str, Any] = {}
        self.finish: str | None = None
        self.status, self.error = 0, ""

    def take(self, piece: Mapping[str, Any]) -> None:
        """Add one event of a stream, or a whole answer."""
        if piece.get("error"):
            self.error = _message(piece["error"])
        self.usage = piece.get("usage") or self.usage
        for choice in piece.get("choices") or []:
            delta = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
            text, thought = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
            calls = delta.get("tool_calls") or []
            if text or thought or calls:
                self.times.append(self.clock())
            self.texts.append(text or "")
            self.thoughts.append(thought or "")
            for place, call in enumerate(calls):
                self._add_call(call.get("index", place), call)
            self._add_logprobs(choice.get("logprobs") or {})
            if choice.get("finish_reason"):
                self.finish = choice["finish_reason"]
                self.times = self.times or [self.clock()]

    def _add_call(self, index: int, call: Mapping[str, Any]) -> None:
        known = self.calls.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        known["id"] = call.get("id") or known["id"]
        for key, value in (call.get("function") or {}).items():
            is_piece = value is None or isinstance(value, str)
            known["function"][key] = (known["function"].get(key) or "") + (value or "") if is_piece else value

    def _add_logprobs(self, found: Mapping[str, Any]) -> None:
        if found.get("content"):
            self.logprobs += [(one["token"], one["logprob"]) for one in found["content"]]
        elif found.get("token_logprobs"):
            self.logprobs += list(zip(found["tokens"], found["token_logprobs"], strict=True))

    def reply(self) -> Reply:
        """Return the answer as far as it came."""
        usage = self.usage
        ended = self.clock()
        if self.status == 200 and not self.error and not self.finish and not self.times:
            self.error = "the answer ended without text and without a finish_reason"
        return Reply(
            text="".join(self.texts),
            reasoning="".join(self.thoughts),
            tool_calls=tuple(self.calls[index] for index in sorted(self.calls)),
            ttft_s=self.times[0] - self.began if self.times else float("nan"),
            total_s=ended - self.began,
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
            finish_reason=self.finish,
            gaps_s=tuple(later - sooner for sooner, later in zip(self.times, self.times[1:], strict=False)),
            logprobs=tuple(self.logprobs),
            status=self.status,
            error=self.error,
        )


def _has_host(url: str) -> bool:
    try:
        return bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def _events(lines: Iterator[str], seen: _Seen) -> Iterator[Mapping[str, Any]]:
    """Yield the JSON of each server-sent event. Raises httpx.ReadTimeout when the time for the answer is over."""
    for line in lines:
        if seen.clock() > seen.until:
            raise httpx.ReadTimeout("the answer took too long")
        if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
            yield json.loads(data)


def _error_text(response: httpx.Response) -> str:
    """Return a server's error in one line."""
    try:
        told = response.json()
        return _message(told.get("error") or told.get("detail") or told)
    except (ValueError, AttributeError):
        return " ".join(response.text.split())[:MAX_ERROR_CHARS] or f"HTTP status {response.status_code}"


def _message(error: Any) -> str:
    text = error.get("message") if isinstance(error, Mapping) else error
    return " ".join(str(text if text is not None else error).split())[:MAX_ERROR_CHARS]
