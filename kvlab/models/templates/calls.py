"""Calls in the form that chat templates know: numbered in their order, with arguments as mappings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvlab.errors import ModelError
from kvlab.models.templates.fields import TemplateMessage


class CallNumbers:
    """Numbers the calls of a conversation. Ids of nine letters and digits are what the strictest templates ask for."""

    def __init__(self) -> None:
        self._count = 0
        self._given: dict[str, tuple[str, str]] = {}  # id of the client -> canonical id and name
        self._open: list[tuple[str, str]] = []  # calls without a result yet

    def of_answer(self, message: Mapping[str, Any]) -> TemplateMessage:
        """Return the calls of an answer as ``tool_calls``; nothing without any. Raises ModelError for a broken call."""
        given = list(message.get("tool_calls") or [])
        if message.get("function_call"):
            given.append({"function": message["function_call"]})
        calls = []
        self._open = []
        for call in given:
            function = call.get("function") if isinstance(call, Mapping) else None
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise ModelError("a tool call has a function with a name and arguments")
            new = (f"call{self._count:05d}", function["name"])
            self._count += 1
            self._given[str(call.get("id") or "")] = new
            self._open.append(new)
            function = {"name": new[1], "arguments": _arguments(function.get("arguments"))}
            calls.append({"id": new[0], "type": "function", "function": function})
        return {"tool_calls": calls} if calls else {}

    def of_result(self, message: Mapping[str, Any]) -> TemplateMessage:
        """Return number and name of the call that a result belongs to; nothing where there is none."""
        given = str(message.get("tool_call_id") or "")
        known = self._given.get(given)
        if known is None and self._open:  # without a known id, results come in the order of the calls
            known = self._open[0]
        if known is None:
            return {}
        if known in self._open:
            self._open.remove(known)
        return {"tool_call_id": known[0], "name": known[1]}


def _arguments(given: object) -> Any:
    """Return arguments as a mapping; those that are no JSON object as the text that they are."""
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        try:
            parsed = json.loads(given)
        except ValueError:
            return given
        return parsed if isinstance(parsed, dict) else given
    return dict(given) if isinstance(given, Mapping) else json.dumps(given, ensure_ascii=False)
