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
from kvlab.server.generation.request import Called, Ended, Event, GenerationRequest, Heartbeat, Text
from kvlab.server.generation.sampling import Logprobs, TokenLogprob
from kvlab.server.logs import log
from kvlab.server.structured.grammar import Constraint
from kvlab.server.structured.tool_formats import Format


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


class Choice:
    """Turns one stream of tokens into text and calls. Iterate :meth:`events` once; :meth:`cancel` may come any time."""

    def __init__(
        self,
        index: int,
        ask: GenerationRequest,
        stream: Stream,
        reader: OutputParser,
        form: Format,
        constraint: Constraint | None,
        logprobs: Logprobs | None,
    ) -> None:
        self.index, self.ask, self.stream = index, ask, stream
        self._feed = AsyncTokenStream(stream, None if logprobs is None else logprobs.token_out)
        self._reader, self._form = reader, form
        self._constraint, self._logprobs = constraint, logprobs
        self._call = ""
        self._untold: list[tuple[int, TokenLogprob]] = []
        self._unread: list[int | None] = []
        self.tokens: list[int] = []
        self.text = ""
        self.reasoning = ""
        self.calls: list[Called] = []

    def cancel(self) -> None:
        """Stop generating within a step. Idempotent."""
        if not self.stream.done:
            self.stream.cancel()

    async def events(self, *, heartbeat: float, deadline: float) -> AsyncGenerator[Event, None]:
        """What happens, until :class:`Ended`; a :class:`Heartbeat` after each ``heartbeat`` seconds of silence.

        Raises ApiError 408 at the ``deadline`` (the event loop's time), or what ended the request in the decoder.
        """
        try:
            ended = False
            while not ended:
                try:
                    batch = await self._feed.next(heartbeat)
                except TimeoutError:
                    if asyncio.get_running_loop().time() > deadline:
                        raise ApiError(408, "the request took longer than this server allows") from None
                    yield Heartbeat()
                    continue
                for token in self._readable(batch):
                    if token is None:
                        ended = True
                    elif self._reader.stopped is None:
                        for event in self._read(token):
                            yield event
                if self._reader.stopped is not None:
                    self.cancel()
                if asyncio.get_running_loop().time() > deadline and not ended:
                    raise ApiError(408, "the request took longer than this server allows")
            completion = self._completion()
            for event in self._pieces(self._reader.finish()):
                yield event
            if self._call and not self._form.end and completion.finish_reason == "stop":
                for event in self._called(self._call, ""):
                    yield event
            elif self._call:  # cut off: a part of a call is no call
                yield self._say(self._form.start + self._call)
            if self._untold:
                yield self._say("")
            yield self._ended(completion)
        finally:
            self.cancel()

    def _completion(self) -> Completion:
        try:
            return self.stream.result(0)
        except KvlabError as error:
            raise ApiError(400, str(error)) from error
        except Exception as error:
            # What broke in a batch is no fault of this request; a type and a place tell enough, and quote no prompt.
            log("decoder failed", level=40, error=type(error).__name__, where=_place(error))
            raise ApiError(500, "the model failed while answering; the server's log says where") from error

    def _readable(self, batch: list[int | None]) -> list[int | None]:
        """Return the tokens to read now. A log-probability comes one token late: its token waits for it."""
        self._unread += batch
        ready = len(self._unread)
        if self._logprobs is not None and None not in self._unread:
            ready = len(self._logprobs.entries) - len(self.tokens)
        batch, self._unread = self._unread[:ready], self._unread[ready:]
        return batch

    def _read(self, token: int) -> list[Event]:
        self.tokens.append(token)
        if self._logprobs is not None:
            self._untold += [
                (token, entry) for entry in self._logprobs.entries[len(self.tokens) - 1 : len(self.tokens)]
            ]
        return self._pieces(self._reader.add(token))

    def _pieces(self, pieces: list[OutputPiece]) -> list[Event]:
        made: list[Event] = []
        for piece in pieces:
            if piece.kind != TOOL:
                made.append(self._say(piece.text, piece.kind == REASONING))
                continue
            self._call += piece.text
            if piece.ended:
                made += self._called(self._call, self._form.end)
                self._call = ""
        return made

    def _called(self, text: str, end: str) -> list[Event]:
        """The calls in ``text``; when there are none in it, the text itself, for a broken call is worse than words."""
        trusted = self._constraint is not None and self.ask.call == "required"
        found = self._form.read(text.strip(), self.ask.tools, trusted=trusted)
        if not found:
            return [self._say(self._form.start + text + end)]
        if not self.ask.many and self.calls:
            return []
        events: list[Event] = []
        for call in found if self.ask.many else found[:1]:
            called = Called(self.index, len(self.calls), f"call_{secrets.token_hex(12)}", call)
            self.calls.append(called)
            events.append(called)
        return events

    def _say(self, text: str, reasoning: bool = False) -> Text:
        if reasoning:
            self.reasoning += text
        else:
            self.text += text
        told, self._untold = tuple(self._untold), []
        return Text(self.index, text, reasoning, told)

    def _ended(self, completion: Completion) -> Ended:
        failure = self._constraint.failure if self._constraint is not None else ""
        if failure and self.ask.call == "required" and not self.calls:
            raise ApiError(400, f"the schemas of these tools are too complex to enforce: {failure}")
        reason = "length" if completion.finish_reason == "length" else "stop"
        if self.calls:
            reason = "tool_calls"
        return Ended(self.index, reason, completion, len(self.tokens), self._reader.stopped)
