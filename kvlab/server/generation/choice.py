"""One answer while it is generated: tokens in, events out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator

from kvlab.decoder import Completion, Stream
from kvlab.errors import KvlabError
from kvlab.server.errors import ApiError
from kvlab.server.generation.async_stream import AsyncTokenStream
from kvlab.server.generation.output_parser import REASONING, TOOL, OutputParser, OutputPiece
from kvlab.server.generation.request import (
    ChoiceEnd,
    ChoiceEvent,
    GenerationRequest,
    Heartbeat,
    TextDelta,
    ToolCallEvent,
)
from kvlab.server.generation.sampling import Logprobs, TokenLogprob
from kvlab.server.logs import log
from kvlab.server.structured.grammar import Constraint
from kvlab.server.structured.tool_formats import ToolFormat


class Choice:
    """Turns one stream of tokens into text and tool calls.

    Iterate :meth:`events` once; :meth:`cancel` may be called at any time.
    """

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        stream: Stream,
        parser: OutputParser,
        tool_format: ToolFormat,
        constraint: Constraint | None,
        logprobs: Logprobs | None,
    ) -> None:
        self.index, self.request, self.stream = index, request, stream
        self._token_stream = AsyncTokenStream(stream, None if logprobs is None else logprobs.token_out)
        self._parser, self._tool_format = parser, tool_format
        self._constraint, self._logprobs = constraint, logprobs
        self._open_call = ""
        self._unsent_logprobs: list[tuple[int, TokenLogprob]] = []
        self._unparsed: list[int | None] = []
        self.tokens: list[int] = []
        self.text = ""
        self.reasoning = ""
        self.calls: list[ToolCallEvent] = []

    def cancel(self) -> None:
        """Stop generating within one decode step. Idempotent."""
        if not self.stream.done:
            self.stream.cancel()

    async def events(self, *, heartbeat: float, deadline: float) -> AsyncGenerator[ChoiceEvent, None]:
        """Yield the events up to :class:`ChoiceEnd`; a :class:`Heartbeat` after each ``heartbeat`` seconds of silence.

        Raises ApiError 408 at the ``deadline`` (the event loop's time), or the error that ended the request.
        """
        try:
            ended = False
            while not ended:
                try:
                    batch = await self._token_stream.next_batch(heartbeat)
                except TimeoutError:
                    if asyncio.get_running_loop().time() > deadline:
                        raise ApiError(408, "the request took longer than this server allows") from None
                    yield Heartbeat()
                    continue
                for token in self._take_ready(batch):
                    if token is None:
                        ended = True
                    elif self._parser.stopped is None:
                        for event in self._parse(token):
                            yield event
                if self._parser.stopped is not None:
                    self.cancel()
                if asyncio.get_running_loop().time() > deadline and not ended:
                    raise ApiError(408, "the request took longer than this server allows")
            completion = self._completion()
            for event in self._events_of(self._parser.finish()):
                yield event
            if self._open_call and not self._tool_format.end and completion.finish_reason == "stop":
                for event in self._call_events(self._open_call, ""):
                    yield event
            elif self._open_call:  # an incomplete call is sent as text
                yield self._text_event(self._tool_format.start + self._open_call)
            if self._unsent_logprobs:
                yield self._text_event("")
            yield self._end_event(completion)
        finally:
            self.cancel()

    def _completion(self) -> Completion:
        try:
            return self.stream.result(0)
        except KvlabError as error:
            raise ApiError(400, str(error)) from error
        except Exception as error:
            # The error may come from another request of the batch. A type and a place quote no prompt.
            log("decoder failed", level=40, error=type(error).__name__, where=_location(error))
            raise ApiError(500, "the model failed while answering; the server's log says where") from error

    def _take_ready(self, batch: list[int | None]) -> list[int | None]:
        """Return the tokens to parse now. Log-probabilities come one token late: a token waits for its own."""
        self._unparsed += batch
        ready = len(self._unparsed)
        if self._logprobs is not None and None not in self._unparsed:
            ready = len(self._logprobs.entries) - len(self.tokens)
        batch, self._unparsed = self._unparsed[:ready], self._unparsed[ready:]
        return batch

    def _parse(self, token: int) -> list[ChoiceEvent]:
        place = len(self.tokens)
        self.tokens.append(token)
        if self._logprobs is not None:
            self._unsent_logprobs += [(token, entry) for entry in self._logprobs.entries[place : place + 1]]
        return self._events_of(self._parser.add(token))

    def _events_of(self, pieces: list[OutputPiece]) -> list[ChoiceEvent]:
        events: list[ChoiceEvent] = []
        for piece in pieces:
            if piece.kind != TOOL:
                events.append(self._text_event(piece.text, piece.kind == REASONING))
                continue
            self._open_call += piece.text
            if piece.ended:
                events += self._call_events(self._open_call, self._tool_format.end)
                self._open_call = ""
        return events

    def _call_events(self, text: str, end: str) -> list[ChoiceEvent]:
        """Return the calls in ``text``; without a valid call, the text itself, so that the client can read it."""
        trusted = self._constraint is not None and self.request.tool_choice == "required"
        calls = self._tool_format.parse(text.strip(), self.request.tools, trusted=trusted)
        if not calls:
            return [self._text_event(self._tool_format.start + text + end)]
        if not self.request.parallel_calls and self.calls:
            return []
        events: list[ChoiceEvent] = []
        for call in calls if self.request.parallel_calls else calls[:1]:
            event = ToolCallEvent(self.index, len(self.calls), f"call_{secrets.token_hex(12)}", call)
            self.calls.append(event)
            events.append(event)
        return events

    def _text_event(self, text: str, reasoning: bool = False) -> TextDelta:
        if reasoning:
            self.reasoning += text
        else:
            self.text += text
        logprobs, self._unsent_logprobs = tuple(self._unsent_logprobs), []
        return TextDelta(self.index, text, reasoning, logprobs)

    def _end_event(self, completion: Completion) -> ChoiceEnd:
        failure = self._constraint.failure if self._constraint is not None else ""
        if failure and self.request.tool_choice == "required" and not self.calls:
            raise ApiError(400, f"the schemas of these tools are too complex to enforce: {failure}")
        reason = "length" if completion.finish_reason == "length" else "stop"
        if self.calls:
            reason = "tool_calls"
        return ChoiceEnd(self.index, reason, completion, len(self.tokens), self._parser.stopped)


def _location(error: BaseException) -> str:
    """File and line that raised ``error``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
