"""From tokens to content, reasoning and tool calls, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvlab.server.structured.tool_families.headed_calls import MAX_HEADER_CHARACTERS
from kvlab.server.structured.tool_families.json_text import is_start_of
from kvlab.server.structured.tool_formats import Extent, Progress, Tool, ToolCall, ToolFormat

CONTENT, REASONING, TOOL = "content", "reasoning", "tool"


class OutputPiece(NamedTuple):
    """Text of one kind, or the calls of a complete tool call."""

    kind: str
    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class CallReader:
    """Reads calls of ``tools``. ``trusted``: a grammar enforced them, so that they are not checked again."""

    format: ToolFormat
    tools: Sequence[Tool]
    trusted: bool = False

    def parse(self, text: str) -> tuple[ToolCall, ...]:
        return tuple(self.format.parse(text.strip(), self.tools, trusted=self.trusted))


class OutputParser:
    """Parses one answer, in pieces of any size, without the markers of thinking and of calls.

    A call ends where its own form says so: markers inside of its strings are text. What is no valid call is content,
    whole and with its markers. The pieces' texts do not depend on how the answer was cut.

    Args:
        detokenizer: mlx-lm's streaming detokenizer, of this answer alone.
        thinking: the texts around thinking; None for no thinking.
        calls: reads tool calls; None for no calls.
        stop: strings that end the content; they are not part of it.
        reasoning: the prompt has already opened a thinking block.
        verbatim: a grammar enforces the content: no marker is looked for in it, except that of a call at its beginning.
        dropped: markers that are left out of the content.
    """

    def __init__(
        self,
        detokenizer: Any,
        *,
        thinking: tuple[str, str] | None = None,
        calls: CallReader | None = None,
        stop: Sequence[str] = (),
        reasoning: bool = False,
        verbatim: bool = False,
        dropped: Sequence[str] = (),
    ) -> None:
        self.stopped: str | None = None
        self.cut = False
        """The token limit cut a call, or text behind calls."""
        self.hides_text = False
        """A call was cut, and its text is not part of the content."""
        self._detokenizer = detokenizer
        self._thinking, self._calls, self._verbatim = thinking, calls, verbatim
        self._stop, self._dropped = tuple(stop), tuple(dropped)
        self._starts = calls.format.starts if calls else ()
        self._kind = REASONING if reasoning and thinking else CONTENT
        self._strips_whitespace = bool(calls or thinking) and not verbatim
        self._buffer = ""
        self._plain = 0  # so many characters of the buffer are text: markers in them do not count
        self._call_start: str | None = None  # the marker of the call that the buffer begins with
        self._seen = 0  # so many characters behind that marker were open before
        self._is_open = False
        self._broken_call = False  # text goes on to the end marker of a call that was none
        self._held_whitespace = ""  # sent when text follows; before a marker it is dropped
        self._at_beginning = True  # of the content, or of what follows on calls
        self._after_marker = False
        self._has_calls = False

    # -- feeding ----------------------------------------------------------------------------------------------------

    def add(self, token: int) -> list[OutputPiece]:
        """Return the pieces that this token completes; none once :attr:`stopped` is set."""
        self._detokenizer.add_token(token)
        return self.feed(self._detokenizer.last_segment)

    def feed(self, text: str) -> list[OutputPiece]:
        """Return the pieces that ``text`` completes."""
        pieces: list[OutputPiece] = []
        if text and self.stopped is None:
            self._buffer += text
            self._parse(pieces)
        return pieces

    def finish(self, *, limited: bool = False) -> list[OutputPiece]:
        """Return the pieces that were held back. ``limited``: the token limit ended the answer."""
        if self.stopped is not None:
            return []
        self._detokenizer.finalize()
        pieces = self.feed(self._detokenizer.last_segment)
        while self.stopped is None and self._buffer:
            if self._call_start is None:
                self._parse_text(pieces, final=True)
            else:
                self._finish_call(pieces, limited)
        self._send_whitespace(pieces)
        if limited and self._has_calls and not self._at_beginning:
            self.cut = True
        return pieces

    def _parse(self, pieces: list[OutputPiece]) -> None:
        while self.stopped is None:
            more = self._parse_text(pieces) if self._call_start is None else self._parse_call(pieces)
            if not more:
                return

    # -- text -------------------------------------------------------------------------------------------------------

    def _parse_text(self, pieces: list[OutputPiece], final: bool = False) -> bool:
        """Parse up to the next marker. Returns False when more text is needed to go on."""
        if self._kind == CONTENT and self._calls and self._at_beginning and not self._plain and not self._broken_call:
            begun = self._calls.format.begins_without_marker(self._buffer)
            if begun:
                self._call_start, self._seen = "", 0
                return True
            if begun is None and not final:
                return False
        stops = self._stop if self._kind == CONTENT else ()
        markers = self._markers()
        stop = first_marker(self._buffer, stops, 0)
        found = first_marker(self._buffer, markers, self._plain)
        if found and (not stop or found[0] < stop[0]):
            self._take(pieces, found[0])
            self._at_marker(found[1])
            return True
        if stop:
            self._take(pieces, stop[0])
            self._send_whitespace(pieces)
            self.stopped, self._buffer = stop[1], ""
            return False
        held = 0 if final else max(unfinished(self._buffer, stops), unfinished(self._buffer, markers))
        self._take(pieces, len(self._buffer) - held)
        return False

    def _markers(self) -> tuple[str, ...]:
        """Return the markers that count from here on."""
        if self._broken_call and self._calls:
            return (*((self._calls.format.end,) if self._calls.format.end else ()), *self._starts)
        if self._kind == REASONING and self._thinking:
            return (self._thinking[1], *self._starts)
        if self._verbatim:
            text = self._buffer[self._plain :].lstrip()
            return tuple(start for start in self._starts if self._at_beginning and is_start_of(text, start))
        return (*self._starts, *((self._thinking[0],) if self._thinking else ()), *self._dropped)

    def _at_marker(self, marker: str) -> None:
        """Go on at ``marker``, which the buffer begins with."""
        if marker in self._starts:
            self._call_start, self._seen, self._broken_call = marker, 0, False
        elif self._broken_call:
            self._plain, self._broken_call = len(marker), False  # the end marker is text too
        else:
            self._buffer = self._buffer[len(marker) :]
            if self._thinking and marker in self._thinking:
                self._kind = REASONING if marker == self._thinking[0] and self._kind == CONTENT else CONTENT
            self._held_whitespace, self._after_marker = "", True

    def _take(self, pieces: list[OutputPiece], size: int) -> None:
        """Turn the first ``size`` characters of the buffer into a piece."""
        text, self._buffer = self._buffer[:size], self._buffer[size:]
        self._plain = max(0, self._plain - size)
        if self._kind == REASONING:
            if text:
                pieces.append(OutputPiece(REASONING, text))
            return
        text = self._held_whitespace + text
        text = text.lstrip() if self._after_marker else text
        if self._strips_whitespace:  # templates put line breaks around calls and after thinking
            kept = text.rstrip()
            text, self._held_whitespace = kept, text[len(kept) :]
        if text:
            self._at_beginning = self._at_beginning and not text.strip()
            self._after_marker = False
            pieces.append(OutputPiece(CONTENT, text))

    def _send_whitespace(self, pieces: list[OutputPiece]) -> None:
        if self._held_whitespace and not self._after_marker:
            pieces.append(OutputPiece(CONTENT, self._held_whitespace))
        self._held_whitespace = ""

    # -- calls ------------------------------------------------------------------------------------------------------

    def _parse_call(self, pieces: list[OutputPiece]) -> bool:
        """Parse the call that the buffer begins with. Returns False while it may go on."""
        reader, body = self._reader(), self._body()
        if self._seen > MAX_HEADER_CHARACTERS and self._is_open:
            new, closers = body[self._seen :], reader.format.closers
            if not any(closer in new for closer in closers):
                self._seen = len(body)
                return False
        extent = reader.format.extent(body, self._seen)
        self._is_open, self._seen = extent is Progress.OPEN, len(body)
        if extent is Progress.OPEN or (isinstance(extent, Extent) and not extent.sure):
            return False
        self._end_call(pieces, extent)
        return True

    def _finish_call(self, pieces: list[OutputPiece], limited: bool) -> None:
        """Parse the call that the answer ends in, with whatever is missing of it."""
        reader, body = self._reader(), self._body()
        extent = reader.format.extent(body)
        if extent is not Progress.OPEN:
            self._end_call(pieces, extent)
            return
        whole = reader.format.whole_calls(body)
        if not limited:
            ends = (reader.format.loose_extent(body), Extent(len(body), len(body)))
            found = next((end for end in ends if end and reader.parse(body[: end.inner])), None)
            if found or not whole or not reader.parse(whole[0]):
                self._end_call(pieces, found or Extent(len(body), len(body)))
                return
        self._add_calls(pieces, reader.parse(whole[0]) if whole else (), body[whole[1] :] if whole else "")
        if limited:
            self.cut = self.hides_text = True
            self._buffer = ""

    def _end_call(self, pieces: list[OutputPiece], extent: Extent | Progress) -> None:
        """Take the call out of the buffer; when it is none, its text is content, and markers in it do not count."""
        start, body = self._call_start or "", self._body()
        self._call_start, self._is_open = None, False
        calls = self._reader().parse(body[: extent.inner]) if isinstance(extent, Extent) else ()
        if isinstance(extent, Extent) and calls:
            self._add_calls(pieces, calls, body[extent.outer :])
        elif isinstance(extent, Extent):
            self._plain = max(1, len(start) + extent.outer)
        else:
            self._plain = max(1, len(start))
            self._broken_call = body.lstrip()[:1] in ("{", "[", "<")

    def _add_calls(self, pieces: list[OutputPiece], calls: tuple[ToolCall, ...], rest: str) -> None:
        if calls:
            pieces.append(OutputPiece(TOOL, "", calls))
            self._has_calls = True
        self._call_start, self._buffer, self._held_whitespace = None, rest, ""
        self._after_marker = self._at_beginning = True

    def _reader(self) -> CallReader:
        if self._calls is None:
            raise ValueError("this answer has no calls")
        return self._calls

    def _body(self) -> str:
        return self._buffer[len(self._call_start or "") :]


def first_marker(text: str, markers: Sequence[str], start: int) -> tuple[int, str] | None:
    """Return where the first of ``markers`` is in ``text``, and which; of several at one place the longest."""
    found = [(at, -len(marker), marker) for marker in markers if (at := text.find(marker, start)) >= 0]
    if not found:
        return None
    at, _, marker = min(found)
    return at, marker


def unfinished(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest end of ``text`` that a marker begins with."""
    for size in range(min(len(text), max(map(len, markers), default=1) - 1), 0, -1):
        if any(len(marker) > size and marker.startswith(text[-size:]) for marker in markers):
            return size
    return 0
