"""Calls in Python's form, ``[name(key="value")]``: LFM2, Llama 4, OLMo 3."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from kvlab.server.structured.tool_families.json_calls import JsonCalls
from kvlab.server.structured.tool_formats import Extent, Progress, Tool, ToolFormat

_PARTS = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<open>[\[({])|(?P<close>[\])}])|["']""", re.DOTALL
)
_JSON_NAMES = {"true": True, "false": False, "null": None}
_BEGINNING = re.compile(r"\s*\[?\s*(?:[A-Za-z_][\w.]*\s*(?:\(.*)?)?", re.DOTALL)


class PythonCalls(ToolFormat):
    """A list of calls, or one call a line. Strings are Python's, names such as ``true`` are JSON's.

    There is no grammar for calls that a model begins by itself; required ones are written as JSON.
    """

    def __init__(self, family: str, start: str, end: str = "", **options: Any) -> None:
        super().__init__(family, start, end, steered=False, **options)
        self._json = JsonCalls(family, start, end)

    def extent(self, body: str, seen: int = 0) -> Extent | Progress:
        """Find the end of the list, or the first end marker with whole calls before it."""
        if re.match(r"\s*(\[\s*)?\{", body):
            return self._json.extent(body, seen)
        if not _BEGINNING.fullmatch(body):
            return Progress.BROKEN
        if not self.end:
            end = list_end(body)
            return Progress.OPEN if end is None else Extent(end, end, sure=end < len(body))
        at = body.find(self.end, max(0, seen - len(self.end) + 1))
        while at >= 0:
            if python_calls(body[:at]) is not None:
                return Extent(at, at + len(self.end))
            at = body.find(self.end, at + 1)
        return Progress.OPEN

    def whole_calls(self, body: str) -> tuple[str, int] | None:
        closing = "]" if body.lstrip()[:1] == "[" else ""
        at = body.rfind(")")
        while at >= 0:
            if python_calls(body[: at + 1] + closing) is not None:
                return body[: at + 1] + closing, at + 1
            at = body.rfind(")", 0, at)
        return None

    def load(self, text: str, tools: Sequence[Tool]) -> Any:
        """Return the calls. Raises ValueError."""
        if re.match(r"\s*(\[\s*)?\{", text):
            return self._json.load(text, tools)
        calls = python_calls(text)
        if calls is None:
            raise ValueError("no calls in Python's form")
        return calls


def list_end(text: str) -> int | None:
    """Return where the first bracketed expression of Python ends; None while it is open."""
    depth = 0
    for part in _PARTS.finditer(text):
        if part["text"]:
            continue
        if not part["open"] and not part["close"]:
            return None  # a string is open
        depth += 1 if part["open"] else -1
        if depth == 0:
            return part.end()
    return None


def python_calls(text: str) -> list[dict[str, Any]] | None:
    """Return the calls of a list or of lines; None when ``text`` is anything else."""
    try:
        body = ast.parse(text.strip()).body
        nodes = [node.value for node in body if isinstance(node, ast.Expr)]
        if not nodes or len(nodes) < len(body):
            return None
        calls = [call for node in nodes for call in (node.elts if isinstance(node, ast.List) else [node])]
        return [_call(node) for node in calls] or None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> dict[str, Any]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("an argument has no name")
        arguments[keyword.arg] = ast.literal_eval(_JsonNames().visit(keyword.value))
    return {"name": ast.unparse(node.func), "arguments": arguments}


class _JsonNames(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node
