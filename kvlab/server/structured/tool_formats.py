"""The forms in which models write tool calls: what all families have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from kvlab.server.structured import json_schema
from kvlab.server.structured.enforceable import Enforceable, enforceable

Tool = Mapping[str, Any]
Literal = Callable[[str], str]
"""Writes Lark for exactly this text; markers that are single tokens become token references."""

# The spacing of chat templates: a call that is rendered again equals the generated text.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": True}

Parser = Callable[[str, list[Tool]], Any]
"""Parses the text of a call; raises any error."""


class ToolCall(NamedTuple):
    """A tool call. ``arguments`` is JSON text of an object."""

    name: str
    arguments: str


class Extent(NamedTuple):
    """Where a call ends in the text after its start: its own text is ``[:inner]``, with its end marker ``[:outer]``.

    ``sure`` is False while an end marker or one more call may follow.
    """

    inner: int
    outer: int
    sure: bool = True


class Progress(Enum):
    """What is known of a call that has not ended."""

    OPEN = "the call goes on"
    BROKEN = "the text can no longer become a call"


class ToolFormat:
    """The tool calls of one model family: where a call ends, what it says, and a grammar for it. Stateless.

    The base class is for a JSON object between two markers, which every model can be made to write.

    Args:
        family: the family's name, for the log.
        start: the text that begins a call; empty where calls have no marker.
        end: the text that ends it; empty where the call's own form says where it ends.
        other_starts: texts that begin a call too.
        steered: calls that the model begins by itself are generated under the grammar.
        known: False for the form that is assumed of a template that no family is known for.
    """

    closers = "}]>"
    """Characters that can complete a call: without a new one, an open call stays open."""

    def __init__(
        self,
        family: str,
        start: str,
        end: str = "",
        *,
        other_starts: Sequence[str] = (),
        steered: bool = True,
        known: bool = True,
    ) -> None:
        self.family, self.start, self.end, self.steered, self.known = family, start, end, steered, known
        self.starts = tuple(text for text in (start, *other_starts) if text)
        self.trigger = start
        """The text at which the grammar of a call that the model begins by itself comes into force."""
        self.library: Parser | None = None
        """mlx-lm's parser, for text that is not quite of the family's form."""

    # -- reading ----------------------------------------------------------------------------------------------------

    def begins_without_marker(self, text: str) -> bool | None:
        """Say whether an answer that begins with ``text`` is a call; None while that is open."""
        return False

    def extent(self, body: str, seen: int = 0) -> Extent | Progress:
        """Find the end of the call in ``body``, the text after its start. Markers inside of strings do not count.

        ``seen`` characters of it were open before.
        """
        raise NotImplementedError

    def loose_extent(self, body: str) -> Extent | None:
        """Return the end of a call whose form is not the family's: the first end marker; None without one."""
        at = body.find(self.end) if self.end else -1
        return None if at < 0 else Extent(at, at + len(self.end))

    def whole_calls(self, body: str) -> tuple[str, int] | None:
        """Find the whole calls before an incomplete one, where the form has several between one pair of markers.

        Returns a text that :meth:`parse` reads them from, and where the rest begins.
        """
        return None

    def load(self, text: str, tools: Sequence[Tool]) -> Any:
        """Return the call's ``name`` and ``arguments``, or a list of such. Raises any error for another text."""
        raise NotImplementedError

    def parse(self, text: str, tools: Sequence[Tool], *, trusted: bool = False) -> list[ToolCall]:
        """Parse the text between the markers; an empty list when it holds no valid calls of ``tools``.

        ``trusted``: a grammar enforced the text, so that its arguments are not checked again.
        """
        found = self._found(text, tools)
        offered = {tool["function"]["name"]: tool for tool in tools}
        calls = []
        for item in found if isinstance(found, list) else [found]:
            name, arguments = _name_and_arguments(item)
            if name not in offered or not isinstance(arguments, dict):
                return []
            schema = json_schema.parameters(offered[name])
            arguments = with_json_types(arguments, schema)
            if not trusted and json_schema.problem(arguments, schema):
                return []
            try:
                calls.append(ToolCall(name, valid_unicode(json.dumps(arguments, ensure_ascii=False, allow_nan=False))))
            except (ValueError, RecursionError):  # infinity and NaN are no JSON
                return []
        return calls

    def _found(self, text: str, tools: Sequence[Tool]) -> Any:
        for load in (self.load, self.library):
            try:
                if load is not None:
                    return load(text, list(tools))
            except Exception:  # noqa: BLE001, S112 - parsers of many authors raise many errors: the text is no call
                continue
        return []

    # -- writing ----------------------------------------------------------------------------------------------------

    def grammar(
        self,
        tools: Sequence[Tool],
        literal: Literal,
        *,
        many: bool,
        lenient: bool,
        first: str = "",
        otherwise: str = "",
    ) -> str:
        """Write Lark for one call of any of ``tools``, or for one or more with ``many``.

        ``lenient`` allows any spacing around a call, and leaves wrong parts of schemas open. ``first`` is Lark for the
        text before the first call, ``otherwise`` for what may stand in the place of calls.
        """
        rules = [self.call_rule(i, tool, literal, lenient) for i, tool in enumerate(tools)]
        one = " | ".join(f"call_{i}" for i in range(len(tools)))
        body = self.calls_rule(literal, many=many, lenient=lenient)
        if otherwise:
            body = f"({body} | {otherwise})"
        return "\n".join(["%llguidance {}", f"start: {first} {body}", f"any: {one}", *rules])

    def calls_rule(self, literal: Literal, *, many: bool, lenient: bool) -> str:
        """Write Lark for the calls with their markers; the rule ``any`` stands for one call."""
        # A call that the model begins by itself may have any spacing; a forced one has that of the template.
        gap = "/[ \\t\\n]*/" if lenient else quoted("\n")
        wrapped = f"{literal(self.start)} {gap} any {gap} {literal(self.end)}"
        return wrapped + (f" ({quoted(chr(10))} {wrapped})*" if many else "")

    def call_rule(self, i: int, tool: Tool, literal: Literal, lenient: bool) -> str:
        """Write the rules of ``call_i``, a call of ``tool`` without its markers."""
        name = json.dumps(tool["function"]["name"], ensure_ascii=False)
        opening = f'{{"name": {name}, "arguments": '
        arguments = f"args_{i}: {json_rule(arguments_schema(tool, lenient))}"
        return f"call_{i}: {quoted(opening)} args_{i} {quoted('}')}\n{arguments}"

    def answer_start(self, literal: Literal) -> str:
        """Write Lark for the text between the prompt and an answer in words or JSON; empty where there is none."""
        return ""


NAME_KEYS = ("name", "tool_name", "function", "tool")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")


def _name_and_arguments(item: Any) -> tuple[Any, Any]:
    """Return the name and the arguments of a call, whatever keys a family has for them."""
    if isinstance(item, Mapping) and isinstance(item.get("function"), Mapping):
        item = item["function"]
    if not isinstance(item, Mapping):
        return None, None
    name = next((item[key] for key in NAME_KEYS if isinstance(item.get(key), str)), None)
    arguments: Any = next((item[key] for key in ARGUMENT_KEYS if item.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = json.loads(arguments) if is_json(arguments) else None
    return name, arguments


def valid_unicode(text: str) -> str:
    """Join halves of characters that were escaped one by one; a lone half becomes U+FFFD."""
    if not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


XML_END = "\n</parameter>\n"


def quoted(text: str) -> str:
    """Quote ``text`` as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


class EnforceableSchema(dict[str, Any]):
    """A schema of arguments that is enforceable as it stands."""


def arguments_schema(tool: Tool, lenient: bool) -> Mapping[str, Any]:
    """Return the enforceable schema of a tool's arguments. Raises ApiError 400."""
    given = tool["function"].get("parameters")
    return given if isinstance(given, EnforceableSchema) else enforceable_arguments(tool, strict=not lenient).schema


def enforceable_arguments(tool: Tool, *, strict: bool) -> Enforceable:
    """Return what a grammar can enforce of a tool's arguments. Raises ApiError 400."""
    function = tool["function"]
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return enforceable(schema, f"tool {function['name']!r}", strict=strict, is_object=True)


def json_rule(schema: Any) -> str:
    """Write Lark for JSON under an enforceable schema, with the spacing of templates."""
    schema = schema if isinstance(schema, Mapping) else {}
    return "%json " + json.dumps({**schema, "x-guidance": SPACING})


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def with_json_types(arguments: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Convert values of the wrong JSON type, such as "5" for an integer, to the type that the schema wants."""
    kinds = schema.get("properties") or {}
    made = dict(arguments)
    for key, value in arguments.items():
        kind = kinds[key].get("type") if isinstance(kinds.get(key), Mapping) else None
        if isinstance(value, str) and kind in ("integer", "number", "boolean", "object", "array") and is_json(value):
            made[key] = json.loads(value)
        elif kind == "string" and not isinstance(value, str):
            made[key] = "null" if value is None else json.dumps(value, ensure_ascii=False)
    return made
