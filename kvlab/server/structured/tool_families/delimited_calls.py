"""Calls with bare keys and strings between special tokens: Gemma 4 and FunctionGemma."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from kvlab.server.structured.tool_families.json_calls import JsonCalls
from kvlab.server.structured.tool_families.json_text import is_start_of
from kvlab.server.structured.tool_formats import Extent, Progress, Tool, ToolFormat

_CALL = re.compile(r"\s*call:(?P<name>[\w.-]+)(?=\{)")
_BARE_KEY = re.compile(r"(?<=[{,])(\s*)([^\s\"{}\[\],:]+)(\s*):")


class DelimitedCalls(ToolFormat):
    """Text between two quote tokens is a string, whatever it holds; the rest is JSON with bare keys.

    There is no grammar for calls that a model begins by itself; required ones are written as JSON.
    """

    def __init__(self, family: str, start: str, end: str, *, quote: str) -> None:
        super().__init__(family, start, end, steered=False)
        self._quote = quote
        self._json = JsonCalls(family, start, end)

    def extent(self, body: str, seen: int = 0) -> Extent | Progress:
        """Find the first end marker with whole calls before it."""
        text = body.lstrip()
        if text[:1] in ("{", "["):
            return self._json.extent(body, seen)
        if not is_start_of(text, "call:"):
            return Progress.BROKEN
        at = body.find(self.end, max(0, seen - len(self.end) + 1))
        while at >= 0:
            if self._calls(body[:at]) is not None:
                return Extent(at, at + len(self.end))
            at = body.find(self.end, at + 1)
        return Progress.OPEN

    def load(self, text: str, tools: Sequence[Tool]) -> Any:
        """Return the calls. Raises ValueError."""
        if text.lstrip()[:1] in ("{", "["):
            return self._json.load(text, tools)
        calls = self._calls(text)
        if calls is None:
            raise ValueError("no whole calls")
        return calls

    def _calls(self, text: str) -> list[dict[str, Any]] | None:
        parts = text.split(self._quote)
        if len(parts) % 2 == 0:  # a string is open
            return None
        # Strings are taken out first, so that nothing in them is read as a key.
        strings = iter(parts[1::2])
        plain = "\x00".join(parts[::2])
        calls, at = [], 0
        while (opened := _CALL.match(plain, at)) is not None:
            end = _braces_end(plain, opened.end())
            if end is None:
                return None
            quoted = _BARE_KEY.sub(lambda m: f"{m[1]}{json.dumps(m[2])}{m[3]}:", plain[opened.end() : end])
            try:
                arguments = json.loads(re.sub("\x00", lambda _: json.dumps(next(strings)), quoted))
            except (ValueError, StopIteration, RecursionError):
                return None
            calls.append({"name": opened["name"], "arguments": arguments})
            at = end
        return calls if calls and not plain[at:].strip() else None


def _braces_end(text: str, start: int) -> int | None:
    depth = 0
    for part in re.finditer(r"[{}]", text[start:]):
        depth += 1 if part[0] == "{" else -1
        if depth == 0:
            return start + part.end()
    return None
