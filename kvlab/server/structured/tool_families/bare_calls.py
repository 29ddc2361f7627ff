"""Calls that are the whole answer, with no marker that says so: Llama 3 and 4."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kvlab.server.structured.tool_families.json_calls import JsonCalls
from kvlab.server.structured.tool_families.python_calls import PythonCalls
from kvlab.server.structured.tool_formats import Extent, Literal, Progress, Tool

FIRST_KEYS = ('"name"', '"type"', '"function"')
"""What the first key of a call is: other JSON is an answer."""
_LIST = re.compile(r"\[\s*([A-Za-z_][\w.]*)?")


class BareCalls(JsonCalls):
    """JSON objects, or a list in Python's form, at the very beginning of an answer or behind the family's marker.

    Their templates accept one call in an answer, so a grammar writes one; all that a model writes are read.
    """

    def __init__(self, family: str, start: str, end: str = "") -> None:
        super().__init__(family, "", end, keys=("name", "parameters"), other_starts=(start,), steered=False)
        self._python = PythonCalls(family, start, end)

    def begins_without_marker(self, text: str) -> bool | None:
        """Say whether ``text`` begins with an object whose first key is one of a call's, or with a call of Python."""
        text = text.lstrip()
        if text[:1] == "[" and not re.match(r"\[\s*\{", text):
            begun = _LIST.match(text)
            rest = text[begun.end() :] if begun else ""
            return None if not rest else bool(begun and begun[1]) and rest[0] == "("
        text = text[1:].lstrip() if text[:1] == "[" else text
        if not text:
            return None
        key = text[1:].lstrip()
        if text[0] != "{" or not any(key.startswith(first) or first.startswith(key) for first in FIRST_KEYS):
            return False
        return True if any(key.startswith(first) for first in FIRST_KEYS) else None

    def extent(self, body: str, seen: int = 0) -> Extent | Progress:
        if re.match(r"\s*\[\s*[^\s{]", body):
            return self._python.extent(body, seen)
        return super().extent(body, seen)

    def whole_calls(self, body: str) -> tuple[str, int] | None:
        if re.match(r"\s*\[\s*[^\s{]", body):
            return self._python.whole_calls(body)
        return super().whole_calls(body)

    def load(self, text: str, tools: Sequence[Tool]) -> Any:
        if re.match(r"\s*\[\s*[^\s{]", text):
            return self._python.load(text, tools)
        return super().load(text, tools)

    def calls_rule(self, literal: Literal, *, many: bool, lenient: bool) -> str:
        return "any"
