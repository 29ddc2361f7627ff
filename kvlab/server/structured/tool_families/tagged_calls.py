"""Calls in tags, with each argument's text between two of them: Qwen3-Coder, GLM, MiniMax, DeepSeek V3.2 and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kvlab.server.structured import json_schema
from kvlab.server.structured.tool_families.json_calls import JsonCalls
from kvlab.server.structured.tool_families.json_text import is_start_of, json_value, skip_space
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

KEY = "{key}"
NAME = "{name}"


class Tags(NamedTuple):
    """The tags of one family, as its chat template writes them.

    ``call`` and ``key`` are written with ``{name}`` and ``{key}``; their patterns have groups of these names.
    """

    call: str
    call_pattern: str
    call_end: str
    key: str
    key_pattern: str
    value_end: str
    on_own_lines: bool = False
    """A line break stands before and behind each value."""
    between_values: str = "\n"
    cdata: bool = False


class TextCall(NamedTuple):
    """A call as it is written: the tool's name; key, text and type of each argument, the type empty if not written."""

    name: str
    values: list[tuple[str, str, str]]


class TaggedCalls(ToolFormat):
    """A value ends at the first end tag that another argument or the end of the call follows.

    Tags inside of a value are text; only a whole ending inside of one, which such a form cannot tell from its own,
    ends it early.
    """

    closers = ">"

    def __init__(self, family: str, start: str, end: str, *, tags: Tags, **options: Any) -> None:
        super().__init__(family, start, end, **options)
        self._tags = tags
        self._call, self._key = re.compile(tags.call_pattern), re.compile(tags.key_pattern)
        self._json = JsonCalls(family, start, end)

    # -- reading ----------------------------------------------------------------------------------------------------

    def extent(self, body: str, seen: int = 0) -> Extent | Progress:
        if body.lstrip()[:1] in ("{", "["):
            return self._json.extent(body, seen)
        if self._has_no_call(body):
            return Progress.BROKEN
        at = body.find(self.end, max(0, seen - len(self.end) + 1))
        while at >= 0:
            if self._read(body[:at]) is not Progress.OPEN:  # of another form: it ends at its first end marker
                return Extent(at, at + len(self.end))
            at = body.find(self.end, at + 1)
        return Progress.OPEN

    def _has_no_call(self, body: str) -> bool:
        text = body.lstrip()
        opening = self._tags.call.partition(NAME)[0].strip()
        if opening:
            return not is_start_of(text, opening)
        key = self._tags.key.partition(KEY)[0]
        name = re.match(r"[^\s<]*\s*", text)
        rest = text[name.end() :] if name else text
        return not (is_start_of(rest, key) or is_start_of(rest, self.end))

    def whole_calls(self, body: str) -> tuple[str, int] | None:
        at = body.rfind(self._tags.call_end) if self._tags.call_end else -1
        while at >= 0:
            end = at + len(self._tags.call_end)
            if not isinstance(self._read(body[:end]), Progress):
                return body[:end], end
            at = body.rfind(self._tags.call_end, 0, at)
        return None

    def _read(self, body: str) -> list[TextCall] | Progress:
        """Return the calls that ``body`` is made of; OPEN when a value has no end, BROKEN when it has another form."""
        calls: list[TextCall] = []
        at = skip_space(body, 0)
        while at < len(body):
            opened = self._call.match(body, at)
            if opened is None or (calls and not self._tags.call_end):
                return Progress.BROKEN
            at, values = skip_space(body, opened.end()), []
            while (key := self._key.match(body, at)) is not None:
                ended = self._value(body, key.end())
                if ended is None:
                    return Progress.OPEN
                values.append((key["key"], ended[0], key.groupdict().get("kind") or ""))
                at = skip_space(body, ended[1])
            if not body.startswith(self._tags.call_end, at):
                return Progress.BROKEN
            at = skip_space(body, at + len(self._tags.call_end))
            calls.append(TextCall(opened["name"].strip(), values))
        return calls or Progress.BROKEN

    def _value(self, body: str, start: int) -> tuple[str, int] | None:
        """Return the value at ``start``, and where its end tag ends."""
        own_line = self._tags.on_own_lines and body[start : start + 1] == "\n"
        start += own_line
        tag = "\n" + self._tags.value_end if own_line else self._tags.value_end
        at = body.find(tag, start)
        while at >= 0:
            after = skip_space(body, at + len(tag))
            ends = body.startswith(self._tags.call_end, after) if self._tags.call_end else after == len(body)
            if ends or self._key.match(body, after):
                return body[start:at], at + len(tag)
            at = body.find(tag, at + 1)
        return None

    def load(self, text: str, tools: Sequence[Tool]) -> Any:
        """Return the calls. Raises ValueError."""
        if text.lstrip()[:1] in ("{", "["):
            return self._json.load(text, tools)
        read = self._read(text)
        if isinstance(read, Progress):
            raise ValueError("no whole calls")
        schemas = {tool["function"]["name"]: json_schema.parameters(tool).get("properties") or {} for tool in tools}
        return [
            {
                "name": call.name,
                "arguments": {
                    key: self._typed(text, schemas.get(call.name, {}).get(key), kind) for key, text, kind in call.values
                },
            }
            for call in read
        ]

    def _typed(self, text: str, schema: Any, kind: str) -> Any:
        if self._tags.cdata and (inner := re.fullmatch(r"\s*<!\[CDATA\[(.*?)\]\]>\s*", text, re.DOTALL)):
            text = inner[1]
        if kind in ("true", "string") or is_text(schema):
            return text
        stripped = text.strip()
        try:
            value, end = json_value(stripped)
        except (ValueError, RecursionError):
            options = schema.get("enum") if isinstance(schema, Mapping) else None
            return stripped if isinstance(options, list) and stripped in options else text
        return value if end == len(stripped) else text

    # -- writing ----------------------------------------------------------------------------------------------------

    def calls_rule(self, literal: Literal, *, many: bool, lenient: bool) -> str:
        gap = quoted("\n") if self._tags.call_end else ""
        wrapped = f"{literal(self.start)} {gap} any {gap} {literal(self.end)}"
        return wrapped + (f" ({quoted(chr(10))} {wrapped})*" if many else "")

    def call_rule(self, i: int, tool: Tool, literal: Literal, lenient: bool) -> str:
        schema, tags = arguments_schema(tool, lenient), self._tags
        parts, rules = [literal(tags.call.replace(NAME, tool["function"]["name"]))], []
        required = schema.get("required") or []
        ending = ("\n" if tags.on_own_lines else "") + tags.value_end + tags.between_values
        for j, (key, kind) in enumerate((schema.get("properties") or {}).items()):
            value = f"value_{i}_{j}"
            if isinstance(kind, Mapping) and "$defs" in schema:
                kind = {**kind, "$defs": schema["$defs"]}
            rules.append(self._value_rule(value, f"json_{i}_{j}", kind, ending, literal, lenient))
            part = f"{literal(tags.key.replace(KEY, key))} {value}"
            parts.append(part if key in required else f"({part})?")
        parts += [literal(tags.call_end)] if tags.call_end else []
        return "\n".join([f"call_{i}: {' '.join(parts)}", *rules])

    def _value_rule(
        self, value: str, inner: str, kind: Any, ending: str, literal: Callable[[str], str], lenient: bool
    ) -> str:
        if is_text(kind) and isinstance(kind.get("enum"), list):
            return f"{value}: ({' | '.join(quoted(str(option)) for option in kind['enum'])}) {literal(ending)}"
        if not is_text(kind):
            return f"{value}: {inner} {literal(ending)}\n{inner}: {json_rule(kind)}"
        if "<[" in literal(ending):  # a special token ends the text: no text can hold one
            return f"{value}: {inner} {literal(ending)}\n{inner}: /(.|\\n)*/"
        escaped = re.sub(r"([|()\[\]{}.*+?^$\\])", r"\\\1", ending).replace("\n", "\\n").replace("/", "\\/")
        return f"{value}[lazy]: /(.|\\n)*{escaped}/"


def is_text(schema: Any) -> bool:
    """Whether values under ``schema`` are strings and nothing else, so that they are written without quotes."""
    return isinstance(schema, Mapping) and schema.get("type") == "string"
