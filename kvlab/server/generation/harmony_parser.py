"""Answers that are messages, each behind a header: gpt-oss, and Muse Spark in a form of its own."""

from __future__ import annotations

import re
from typing import Any

from kvlab.server.generation.output_parser import CONTENT, REASONING, OutputParser, OutputPiece
from kvlab.server.structured.tool_families.harmony_calls import CALL, CHANNEL, END, MESSAGE, RECIPIENT, RETURN, START
from kvlab.server.structured.tool_families.json_text import is_start_of
from kvlab.server.structured.tool_formats import Extent, Progress

HEADER_STARTS = (START, CHANNEL, MESSAGE, "assistant", "to=", "analysis", "commentary", "final")
MAX_HEADER_CHARACTERS = 300
"""Longer text without the end of a header is no header."""


class HarmonyParser(OutputParser):
    """Parses the channels: ``analysis`` is reasoning, a message to a function is a call, all else is content.

    Takes the arguments of :class:`OutputParser`, and ``continues``: the prompt has already begun the content.
    """

    _ends: tuple[str, ...] = (END, RETURN, CALL, START, CHANNEL)

    def __init__(self, *arguments: Any, continues: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_header = not continues

    def _parse_text(self, pieces: list[OutputPiece], final: bool = False) -> bool:
        if not self._in_header:
            return super()._parse_text(pieces, final)
        text = self._buffer.lstrip()
        at = self._buffer.find(MESSAGE)
        if not any(is_start_of(text, start) for start in HEADER_STARTS) or at > MAX_HEADER_CHARACTERS:
            self._in_header, self._kind = False, CONTENT
            return bool(self._buffer)
        if at < 0:
            if final:
                self._in_header, self._kind, self._buffer = False, CONTENT, ""
            elif len(text) > MAX_HEADER_CHARACTERS:
                self._in_header, self._kind = False, CONTENT
                return True
            return False
        header = self._buffer[:at]
        if self._begins_call(header):
            self._call_start, self._seen, self._kind = "", 0, CONTENT
        else:
            self._kind, self._in_header = self._kind_of(header), False
            self._buffer = self._buffer[at + len(MESSAGE) :]
        return True

    def _begins_call(self, header: str) -> bool:
        """Whether the message behind ``header`` is the arguments of a call."""
        return self._calls is not None and re.search(RECIPIENT, header) is not None

    def _kind_of(self, header: str) -> str:
        """Return the kind of the text behind ``header``."""
        channel = re.search(r"<\|channel\|>\s*(\w*)", header)
        thinks = channel is not None and channel[1] == "analysis"
        return REASONING if thinks or re.search(r"\bto=(?!functions\.)", header) else CONTENT

    def _markers(self) -> tuple[str, ...]:
        if self._verbatim and self._kind == CONTENT:
            return ()
        return (*self._ends, *self._starts)

    def _at_marker(self, marker: str) -> None:
        if marker in self._starts:
            super()._at_marker(marker)
            return
        if marker not in (START, CHANNEL):
            self._buffer = self._buffer[len(marker) :]
        self._in_header = True

    def _end_call(self, pieces: list[OutputPiece], extent: Extent | Progress) -> None:
        super()._end_call(pieces, extent)
        self._in_header = not self._plain


class MuseParser(HarmonyParser):
    """Parses messages to a recipient: those to ``self`` are reasoning; calls stand in their text."""

    _ends = ("<|eom|>", "<|eot|>", START)

    def _begins_call(self, header: str) -> bool:
        return False

    def _kind_of(self, header: str) -> str:
        return REASONING if re.search(r"\bto=self\b", header) else CONTENT
