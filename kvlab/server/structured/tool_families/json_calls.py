"""Calls that are JSON objects between two markers, or a list of them: Hermes, Qwen, Granite, Phi, Mistral and more."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kvlab.server.structured.tool_families.json_text import json_end, json_value, skip_space
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

SEPARATORS = ",;"


class JsonCalls(ToolFormat):
    """A call ends where its JSON ends.

    Args:
        listed: the family writes one list of all calls.
        keys: its names for the tool's name and the arguments.
        other_ends: texts that may stand in the place of the end marker.
    """

    def __init__(
        self,
        family: str,
        start: str,
        end: str = "",
        *,
        listed: bool = False,
        keys: tuple[str, str] = ("name", "arguments"),
        other_ends: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(family, start, end, **options)
        self.listed, self.keys = listed, keys
        self._ends = tuple(text for text in (end, *other_ends) if text)

    def extent(self, body: str, seen: int = 0) -> Extent | Progress:
        """Find the end of the JSON values that follow on each other, and of the end marker."""
        at = skip_space(body, 0)
        if at == len(body):
            return Progress.OPEN
        if body[at] not in "{[":
            return Progress.BROKEN
        while True:
            end = json_end(body, at)
            if isinstance(end, Progress):
                return end
            at = skip_space(body, end, SEPARATORS)
            if at == len(body):
                return Extent(end, at, sure=False)
            if body[at] != "{" or self.listed:
                return self._with_end_marker(body, end)

    def _with_end_marker(self, body: str, end: int) -> Extent | Progress:
        rest = body[skip_space(body, end) :]
        for marker in self._ends:
            if rest.startswith(marker):
                return Extent(end, len(body) - len(rest) + len(marker))
        begun = any(marker.startswith(rest) for marker in self._ends)
        return Extent(end, len(body), sure=False) if begun else Extent(end, end)

    def whole_calls(self, body: str) -> tuple[str, int] | None:
        at = skip_space(body, 0)
        is_list = body.startswith("[", at)
        at, ended = skip_space(body, at + is_list), 0
        while body.startswith("{", at):
            end = json_end(body, at)
            if isinstance(end, Progress):
                break
            ended, at = end, skip_space(body, end, SEPARATORS)
        return (body[:ended] + ("]" if is_list else ""), ended) if ended else None

    def load(self, text: str, tools: Sequence[Tool]) -> Any:
        """Return the values, one after the other. Raises ValueError."""
        found, at = [], skip_space(text, 0)
        while at < len(text):
            value, at = json_value(text, at)
            found += value if isinstance(value, list) else [value]
            at = skip_space(text, at, SEPARATORS)
        return found

    def calls_rule(self, literal: Literal, *, many: bool, lenient: bool) -> str:
        if not self.listed:
            return super().calls_rule(literal, many=many, lenient=lenient)
        more = f"({quoted(', ')} any)*" if many or lenient else ""
        return f'{literal(self.start)} "[" any {more} "]" {literal(self.end) if self.end else ""}'

    def call_rule(self, i: int, tool: Tool, literal: Literal, lenient: bool) -> str:
        name = json.dumps(tool["function"]["name"], ensure_ascii=False)
        opening = f'{{"{self.keys[0]}": {name}, "{self.keys[1]}": '
        arguments = f"args_{i}: {json_rule(arguments_schema(tool, lenient))}"
        return f"call_{i}: {quoted(opening)} args_{i} {quoted('}')}\n{arguments}"
