"""The forms in which models write tool calls: a grammar for each, and a parser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kvlab.server.structured import json_schema

Tool = Mapping[str, Any]
Literal = Callable[[str], str]
"""Writes Lark for exactly this text; markers that are single tokens become token references."""

# The spacing of chat templates: a call that is rendered again equals the generated text.
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class ToolCall(NamedTuple):
    """A tool call. ``arguments`` is JSON text of an object."""

    name: str
    arguments: str


class ToolFormat:
    """The tool calls of one model family.

    ``start`` and ``end`` surround a call (``end`` may be empty: the call ends the answer). ``steered``: there
    is a grammar for the model's own form, so that calls which it begins by itself follow their schema.
    """

    def __init__(self, tokenizer: Any) -> None:
        kind = tokenizer.init_kwargs.get("tool_parser_type") if tokenizer.has_tool_calling else None
        self.start: str = tokenizer.tool_call_start or "<tool_call>"
        self.end: str = tokenizer.tool_call_end if tokenizer.has_tool_calling else "</tool_call>"
        self._parser = tokenizer.tool_parser
        self._xml = kind == "qwen3_coder"
        template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else ""
        self._header = kind == "mistral" and "[ARGS]" in template
        self._listed = kind == "mistral" and not self._header
        self.steered = kind in (None, "json_tools", "qwen3_coder", "mistral")

    # -- writing ----------------------------------------------------------------------------------------------------

    def grammar(self, tools: Sequence[Tool], literal: Literal, *, many: bool, lenient: bool, first: str = "") -> str:
        """Write Lark for one call of any of ``tools``, or for one or more with ``many``.

        ``lenient`` ignores keywords of schemas that grammars do not support. ``first`` is Lark for the text before
        the first call.
        """
        rules = [self._call(i, tool, literal, lenient) for i, tool in enumerate(tools)]
        one = " | ".join(f"call_{i}" for i in range(len(tools)))
        if self._listed:
            body = f'{literal(self.start)} "[" any {"(" + quoted(", ") + " any)*" if many else ""} "]"'
        elif self._header:
            body = f"({literal(self.start)} any){'+' if many else ''}"
        else:
            wrapped = f"{literal(self.start)} {self._gap(lenient)} any {self._gap(lenient)} {literal(self.end)}"
            body = wrapped + (f" ({quoted(chr(10))} {wrapped})*" if many else "")
        return "\n".join(["%llguidance {}", f"start: {first} {body}", f"any: {one}", *rules])

    def _gap(self, lenient: bool) -> str:
        # A call that the model begins by itself may have any spacing; a forced one has that of the template.
        return "/[ \\t\\n]*/" if lenient and not self._xml else quoted("\n")

    def _call(self, i: int, tool: Tool, literal: Literal, lenient: bool) -> str:
        name, schema = tool["function"]["name"], json_schema.parameters(tool)
        if self._xml:
            return self._xml_call(i, name, schema, lenient)
        arguments = f"args_{i}: {json_rule(schema, lenient)}"
        if self._header:
            return f"call_{i}: {quoted(name)} {literal('[ARGS]')} args_{i}\n{arguments}"
        opening = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        return f"call_{i}: {quoted(opening)} args_{i} {quoted('}')}\n{arguments}"

    def _xml_call(self, i: int, name: str, schema: Mapping[str, Any], lenient: bool) -> str:
        parts, rules = [quoted(f"<function={name}>\n")], []
        required = schema.get("required") or []
        for j, (key, kind) in enumerate((schema.get("properties") or {}).items()):
            text = isinstance(kind, Mapping) and kind.get("type") == "string"
            value = f"value_{i}_{j}"
            if text and isinstance(kind.get("enum"), list):
                rules.append(f"{value}: ({' | '.join(quoted(str(v)) for v in kind['enum'])}) {quoted(XML_END)}")
            elif text:
                rules.append(f"{value}[lazy]: /(.|\\n)*\\n<\\/parameter>\\n/")
            else:
                rules.append(f"{value}: json_{i}_{j} {quoted(XML_END)}\njson_{i}_{j}: {json_rule(kind, lenient)}")
            part = f"{quoted(f'<parameter={key}>' + chr(10))} {value}"
            parts.append(part if key in required else f"({part})?")
        return "\n".join([f"call_{i}: {' '.join(parts)} {quoted('</function>')}", *rules])

    # -- parsing ----------------------------------------------------------------------------------------------------

    def parse(self, text: str, tools: Sequence[Tool], *, trusted: bool = False) -> list[ToolCall]:
        """Parse the text between the markers; an empty list when it holds no valid calls of ``tools``.

        ``trusted``: a grammar enforced the text, so that its arguments are not checked again.
        """
        try:
            found = self._load(text, tools)
        except Exception:  # noqa: BLE001 - parsers of many authors raise many errors: each means that the text is no call
            return []
        offered = {tool["function"]["name"]: tool for tool in tools}
        calls = []
        for item in found if isinstance(found, list) else [found]:
            name = item.get("name") if isinstance(item, Mapping) else None
            if not isinstance(name, str) or name not in offered:
                return []
            arguments = item.get("arguments", {})
            if isinstance(arguments, str):
                arguments = json.loads(arguments) if is_json(arguments) else None
            if not isinstance(arguments, dict):
                return []
            schema = json_schema.parameters(offered[name])
            arguments = with_json_types(arguments, schema)
            if not trusted and json_schema.problem(arguments, schema):
                return []
            calls.append(ToolCall(name, json.dumps(arguments, ensure_ascii=False)))
        return calls

    def _load(self, text: str, tools: Sequence[Tool]) -> Any:
        if is_json(text):
            return json.loads(text)
        if self._parser is None:
            raise ValueError("not JSON")
        return self._parser(text, list(tools))


XML_END = "\n</parameter>\n"


def quoted(text: str) -> str:
    """Quote ``text`` as a Lark string."""
    return json.dumps(text, ensure_ascii=False)


def json_rule(schema: Any, lenient: bool = False) -> str:
    """Write Lark for JSON under a normal schema, with the spacing of templates."""
    schema = schema if isinstance(schema, Mapping) else {}
    return "%json " + json.dumps({**schema, "x-guidance": {**SPACING, "lenient": lenient}})


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
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
