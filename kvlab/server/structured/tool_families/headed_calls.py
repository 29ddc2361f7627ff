"""Calls with a header that names the tool, and JSON arguments behind it: Mistral, DeepSeek, Kimi, gpt-oss."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kvlab.server.structured.tool_families.json_text import is_start_of, json_end, json_value, skip_space
from kvlab.server.structured.tool_formats import (
    Extent,
    Literal,
    Progress,
    Tool,
    ToolFormat,
    arguments_schema,
    json_rule,
    quoted,
)

NAME = "{name}"
MAX_HEADER_CHARACTERS = 512
"""Longer text without a complete header is no call."""


class HeadedCalls(ToolFormat):
    """Each call is ``header``, JSON, ``closer``; its arguments end where their JSON ends.

    Args:
        header: how the family's template writes the header, with ``{name}`` in the place of the tool's name.
        closer: how it writes the text behind the arguments.
        header_pattern: what models write; by default the template's, with any white space.
        markers: the special tokens in header and closer, so that a grammar refers to them as tokens.
    """

    def __init__(
        self,
        family: str,
        start: str,
        end: str = "",
        *,
        header: str,
        closer: str = "",
        header_pattern: str = "",
        markers: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(family, start, end, **options)
        self._header, self._closer, self._markers = header, closer, tuple(markers)
        before, _, after = header.partition(NAME)
        pattern = header_pattern or f"{_spaced(before)}(?P<name>[^\\s\\[<{{]+?){_spaced(after)}"
        self._pattern = re.compile(pattern)
        self._closer_text = closer.strip()

    def extent(self, body: str, seen: int = 0) -> Extent | Progress:
        """Find the end of the calls that follow on each other, and of the end marker."""
        return self._scan(body)[0]

    def whole_calls(self, body: str) -> tuple[str, int] | None:
        ended = self._scan(body)[1]
        return (body[:ended], ended) if ended else None

    def _scan(self, body: str) -> tuple[Extent | Progress, int]:
        """Return how far the calls are, and where the last whole one ends."""
        at, ended = skip_space(body, 0), 0
        while True:
            rest = body[at:]
            if self.end and ended and rest and is_start_of(rest, self.end):
                complete = rest.startswith(self.end)
                return Extent(ended, at + len(self.end) if complete else len(body), complete), ended
            header = self._pattern.match(body, at)
            if header is None:
                return self._without_header(body, at, ended), ended
            end = json_end(body, skip_space(body, header.end()))
            if isinstance(end, Progress):
                return end, ended
            at = skip_space(body, end)
            if self._closer_text and is_start_of(body[at:], self._closer_text):
                if not body.startswith(self._closer_text, at):
                    return Extent(end, len(body), sure=False), end
                end = at + len(self._closer_text)
            ended, at = end, skip_space(body, end)

    def _without_header(self, body: str, at: int, ended: int) -> Extent | Progress:
        rest = body[at:]
        opening = self._header.partition(NAME)[0].strip()
        begun = not rest or (is_start_of(rest, opening) if opening else self.may_be_header(rest))
        begun = begun and len(rest) < MAX_HEADER_CHARACTERS
        if ended and not (rest and begun and opening):
            return Extent(ended, ended, sure=not begun)
        return Progress.OPEN if begun else Progress.BROKEN

    def may_be_header(self, text: str) -> bool:
        """Whether ``text`` can be the beginning of a header that opens with the tool's name."""
        return re.fullmatch(r"[\w.:/-]+\s*(\[.*)?", text, re.DOTALL) is not None

    def load(self, text: str, tools: Sequence[Tool]) -> Any:
        """Return the calls, one after the other. Raises ValueError."""
        if text.lstrip()[:1] in ("{", "["):
            return json_value(text.strip())[0]
        found, at = [], skip_space(text, 0)
        while at < len(text):
            header = self._pattern.match(text, at)
            if header is None:
                raise ValueError("no header")
            arguments, at = json_value(text, skip_space(text, header.end()))
            found.append({"name": header["name"], "arguments": arguments})
            at = skip_space(text, at)
            if self._closer_text and text.startswith(self._closer_text, at):
                at = skip_space(text, at + len(self._closer_text))
        return found

    def calls_rule(self, literal: Literal, *, many: bool, lenient: bool) -> str:
        if not self.end:
            return f"({literal(self.start)} any){'+' if many else ''}"
        more = f"({quoted(chr(10)) if self._closer else ''} any)*" if many or lenient else ""
        return f"{literal(self.start)} any {more} {literal(self.end)}"

    def call_rule(self, i: int, tool: Tool, literal: Literal, lenient: bool) -> str:
        before, _, after = self._header.partition(NAME)
        arguments = f"args_{i}: {json_rule(arguments_schema(tool, lenient))}"
        name = quoted(tool["function"]["name"])
        parts = [_literals(before, literal), name, _literals(after, literal), f"args_{i}"]
        parts.append(_literals(self._closer, literal))
        return f"call_{i}: {' '.join(part for part in parts if part)}\n{arguments}"


def _literals(text: str, literal: Literal) -> str:
    return literal(text) if text else ""


def _spaced(text: str) -> str:
    """Write the pattern of ``text`` with any white space where it has some."""
    return r"\s*".join(re.escape(part) for part in re.split(r"\s+", text))
