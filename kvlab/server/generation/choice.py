"""One answer while it is generated: tokens in, events out."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import replace

from kvlab.decoder import Completion, Stream
from kvlab.errors import KvlabError
from kvlab.server.errors import ApiError
from kvlab.server.generation.async_stream import AsyncTokenStream
from kvlab.server.generation.output_parser import REASONING, OutputParser, OutputPiece
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
from kvlab.server.structured.constraint import Constraint
from kvlab.server.structured.tool_formats import is_json


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
        constraint: Constraint | None,
        logprobs: Logprobs | None,
    ) -> None:
        self.index, self.request, self.stream = index, request, stream
        self._token_stream = AsyncTokenStream(stream, None if logprobs is None else logprobs.token_out)
        self._parser, self._constraint, self._logprobs = parser, constraint, logprobs
        self._unsent_logprobs: list[tuple[int, TokenLogprob]] = []
        self._unparsed: list[int | None] = []
        self.tokens: list[int] = []
        self.text = ""
        self.reasoning = ""
        self.calls: list[ToolCallEvent] = []
        self.hides_text = False
        """The answer's tokens hold calls that the client does not get: more than it wants, or cut ones."""

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
                    left = deadline - asyncio.get_running_loop().time()
                    batch = await self._token_stream.next_batch(max(0.0, min(heartbeat, left)))
                except TimeoutError:
                    if asyncio.get_running_loop().time() >= deadline:
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
                if self._token_stream.overflowed:
                    raise ApiError(408, "the client reads its answer too slowly")
                if asyncio.get_running_loop().time() > deadline and not ended:
                    raise ApiError(408, "the request took longer than this server allows")
            completion = self._completion()
            for event in self._events_of(self._parser.finish(limited=completion.finish_reason == "length")):
                yield event
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
            if not piece.calls:
                events.append(self._text_event(piece.text, piece.kind == REASONING))
            for call in piece.calls:
                if self.calls and not self.request.parallel_calls:
                    self.hides_text = True
                    continue
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
        self._check_grammar(completion)
        reason = "length" if completion.finish_reason == "length" else "stop"
        if self.calls and not self._parser.cut:
            reason = "tool_calls"
        self.hides_text = self.hides_text or self._parser.hides_text
        end = ChoiceEnd(self.index, reason, completion, len(self.tokens), self._parser.stopped)
        if self.request.grammar is None:
            return end
        calls = [(event.call.name, event.call.arguments) for event in self.calls]
        return replace(end, unenforced=tuple(self.request.grammar.report(self.text, calls)))

    def _check_grammar(self, completion: Completion) -> None:
        """Raise ApiError where a grammar was promised and did not hold: the client must not take the rest for whole."""
        failure = self._constraint.failure if self._constraint is not None else ""
        wants_json, wants_calls = self.request.schema is not None, self.request.tool_choice == "required"
        is_whole = bool(self.calls) and not self.text.strip() and not self._parser.cut
        if failure and (wants_json or wants_calls) and not is_whole:
            raise ApiError(400, f"this schema is too complex to enforce, write a simpler one: {failure}")
        by_itself = completion.finish_reason == "stop" and self._parser.stopped is None
        if wants_json and by_itself and not self.calls and not is_json(self.text):
            raise ApiError(500, "the model ended its answer without the JSON of response_format; ask again")


def _location(error: BaseException) -> str:
    """File and line that raised ``error``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
