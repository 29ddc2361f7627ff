"""Answers in OpenAI's shapes: whole ones, and chunks of a stream."""

from __future__ import annotations

import codecs
import time
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from kvlab.server.errors import ApiError
from kvlab.server.generation.request import ChoiceEnd, TextDelta, ToolCallEvent
from kvlab.server.generation.sampling import TokenLogprob
from kvlab.server.generation.token_bytes import offsets, shown
from kvlab.server.http import sse
from kvlab.server.logs import log
from kvlab.server.service import GenerationSession, answer_details

PING = b": still here\n\n"


def usage(ended: Iterable[ChoiceEnd]) -> dict[str, Any]:
    """Count tokens; a prompt with several answers counts once."""
    ends = list(ended)
    prompts = {end.completion.tags["prompt"]: end.completion for end in ends}.values()
    prompt, generated = sum(p.prompt_tokens for p in prompts), sum(end.tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(p.cached_tokens for p in prompts)},
    }


def finite(logprob: float) -> float:
    """Replace minus infinity, which JSON does not have, by OpenAI's lowest value."""
    return logprob if logprob > -9999.0 else -9999.0


class ResponseShape:
    """Writes text, calls and ends in the form of one endpoint."""

    def __init__(self, session: GenerationSession, *, details: bool) -> None:
        self.session, self._details = session, details
        self._head = {"id": session.request_id, "created": int(time.time()), "model": session.model.name}

    def head(self, chunk: bool) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return the first chunk of a choice; None where it has none."""
        return None

    def delta(self, event: TextDelta | ToolCallEvent) -> dict[str, Any]:
        raise NotImplementedError

    def closing(self, event: ChoiceEnd) -> dict[str, Any]:
        raise NotImplementedError

    def whole(self, index: int, events: list[TextDelta | ToolCallEvent], end: ChoiceEnd) -> dict[str, Any]:
        raise NotImplementedError

    def details(self, ended: list[ChoiceEnd]) -> dict[str, Any]:
        if not self._details or not ended:
            return {}
        return {"kvlab": {"policy": str(self.session.model.policy), **answer_details(ended[0])}}

    async def answer(self) -> dict[str, Any]:
        """Return the complete answer."""
        ended: dict[int, ChoiceEnd] = {}
        events: dict[int, list[TextDelta | ToolCallEvent]] = {}
        async with self.session as session:
            async for event in session.events():
                if isinstance(event, ChoiceEnd):
                    ended[event.index] = event
                elif isinstance(event, TextDelta | ToolCallEvent):
                    events.setdefault(event.index, []).append(event)
        choices = [self.whole(i, events.get(i, []), ended[i]) for i in sorted(ended)]
        ends = [ended[i] for i in sorted(ended)]
        return {**self.head(False), "choices": choices, "usage": usage(ends), **self.details(ends)}

    async def stream(self, *, with_usage: bool) -> AsyncGenerator[bytes, None]:
        """Yield server-sent events, the last one ``[DONE]``; an error in the middle becomes an event."""
        head, ended, opened = self.head(True), [], set()
        async with self.session as session:
            try:
                async for event in session.events():
                    if not isinstance(event, TextDelta | ToolCallEvent | ChoiceEnd):
                        yield PING
                        continue
                    if event.index not in opened:
                        opened.add(event.index)
                        if (first := self.opening(event.index)) is not None:
                            yield sse({**head, "choices": [first]})
                    if isinstance(event, ChoiceEnd):
                        ended.append(event)
                        yield sse({**head, "choices": [self.closing(event)]})
                    elif not isinstance(event, TextDelta) or event.text or event.tokens:
                        yield sse({**head, "choices": [self.delta(event)]})
                if with_usage or self._details:
                    yield sse({**head, "choices": [], "usage": usage(ended), **self.details(ended)})
            except ApiError as error:
                yield sse(error.body("/v1/chat/completions"))
            except Exception as error:  # noqa: BLE001 - the status is sent: only an event can report it
                log("failed", level=40, request=session.request_id, error=type(error).__name__)
                yield sse(ApiError(500, "the server failed while answering").body("/v1/chat/completions"))
        yield sse("[DONE]")


class ChatResponse(ResponseShape):
    """/v1/chat/completions."""

    def head(self, chunk: bool) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if chunk else "chat.completion"}

    def opening(self, index: int) -> dict[str, Any]:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def delta(self, event: TextDelta | ToolCallEvent) -> dict[str, Any]:
        delta: dict[str, Any]
        if isinstance(event, ToolCallEvent):
            delta = {"tool_calls": [{"index": event.number, **self._call(event)}]}
        else:
            delta = {"reasoning_content" if event.reasoning else "content": event.text}
        made = {"index": event.index, "delta": delta, "finish_reason": None}
        if isinstance(event, TextDelta) and event.tokens:
            made["logprobs"] = {"content": [self._logprob(*token) for token in event.tokens]}
        return made

    def closing(self, event: ChoiceEnd) -> dict[str, Any]:
        return {"index": event.index, "delta": {}, "finish_reason": event.reason}

    def whole(self, index: int, events: list[TextDelta | ToolCallEvent], end: ChoiceEnd) -> dict[str, Any]:
        texts = [event for event in events if isinstance(event, TextDelta)]
        calls = [self._call(event) for event in events if isinstance(event, ToolCallEvent)]
        content = "".join(event.text for event in texts if not event.reasoning)
        reasoning = "".join(event.text for event in texts if event.reasoning)
        message: dict[str, Any] = {"role": "assistant", "content": content if content or not calls else None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        tokens = [self._logprob(*token) for event in texts for token in event.tokens]
        return {
            "index": index,
            "message": message,
            "finish_reason": end.reason,
            "logprobs": {"content": tokens} if tokens else None,
        }

    @staticmethod
    def _call(event: ToolCallEvent) -> dict[str, Any]:
        return {"id": event.id, "type": "function", "function": event.call._asdict()}

    def _logprob(self, token: int, entry: TokenLogprob) -> dict[str, Any]:
        def one(token: int, logprob: float) -> dict[str, Any]:
            raw = self.session.model.token_bytes.of(token)
            return {"token": shown(raw), "logprob": finite(logprob), "bytes": list(raw)}

        top = [one(*item) for item in entry.top if item[1] > float("-inf")]
        return {**one(token, entry.logprob), "top_logprobs": top}


class CompletionResponse(ResponseShape):
    """/v1/completions."""

    def __init__(self, session: GenerationSession, *, details: bool, echo: bool) -> None:
        super().__init__(session, details=details)
        self._echo = echo
        self._offset: dict[int, int] = {}
        self._decoders: dict[int, codecs.IncrementalDecoder] = {}

    def head(self, chunk: bool) -> dict[str, Any]:
        return {**self._head, "object": "text_completion"}

    def opening(self, index: int) -> dict[str, Any] | None:
        if not self._echo:
            return None
        return {"index": index, "text": self._prompt(index), "logprobs": None, "finish_reason": None}

    def delta(self, event: TextDelta | ToolCallEvent) -> dict[str, Any]:
        if not isinstance(event, TextDelta):
            raise TypeError("a plain completion has no calls")
        logprobs = self._logprobs(event.index, event) if event.tokens else None
        return {"index": event.index, "text": event.text, "logprobs": logprobs, "finish_reason": None}

    def closing(self, event: ChoiceEnd) -> dict[str, Any]:
        return {"index": event.index, "text": "", "logprobs": None, "finish_reason": event.reason}

    def whole(self, index: int, events: list[TextDelta | ToolCallEvent], end: ChoiceEnd) -> dict[str, Any]:
        texts = [event for event in events if isinstance(event, TextDelta)]
        parts = [self._logprobs(index, event) for event in texts if event.tokens]
        text = (self._prompt(index) if self._echo else "") + "".join(event.text for event in texts)
        logprobs = {key: [item for part in parts for item in part[key]] for key in parts[0]} if parts else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": end.reason}

    def _prompt(self, index: int) -> str:
        request = next(
            request
            for request in self.session.requests
            if request.first_index <= index < request.first_index + request.n
        )
        return self.session.model.loaded.decode(request.prompt.ids)

    def _logprobs(self, index: int, event: TextDelta) -> dict[str, list[Any]]:
        raw = self.session.model.token_bytes.of
        tokens = [raw(token) for token, _ in event.tokens]
        decoder = self._decoders.setdefault(index, codecs.getincrementaldecoder("utf-8")("replace"))
        begins, self._offset[index] = offsets(tokens, decoder, self._offset.get(index, 0))
        return {
            "tokens": [shown(token, "bytes:") for token in tokens],
            "token_logprobs": [finite(entry.logprob) for _, entry in event.tokens],
            "top_logprobs": [
                {shown(raw(token), "bytes:"): finite(logprob) for token, logprob in entry.top}
                for _, entry in event.tokens
            ],
            "text_offset": begins,
        }
