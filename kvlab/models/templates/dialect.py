"""What a chat template accepts and shows, found out by rendering small conversations with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvlab.models.templates.fields import REASONING_FIELDS, TemplateMessage

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]
"""Renders messages and tools as a template does, without a generation prompt. Raises what the template raises."""

SYSTEM, USER, ANSWER, LATER, LAST = "probesystem", "probeuser", "probeanswer", "probelater", "probelast"
RESULT, SECOND_RESULT, THOUGHT = "proberesult", "probesecond", "probethought"
TOOL, DESCRIPTION, KEY, VALUE, SECOND_VALUE = "probetool", "probedescription", "probekey", "probevalue", "probeother"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": DESCRIPTION,
            "parameters": {"type": "object", "properties": {KEY: {"type": "string", "description": "A text."}}},
        },
    }
]


@dataclass(frozen=True)
class TemplateDialect:
    """What one chat template accepts; the defaults are the most capable one.

    Attributes:
        reads_parts: content is shown only as a list of parts.
        has_system: a leading system message is shown.
        late_system: a later system message is shown in its place.
        adjacent_users: two user messages in a row are shown.
        adjacent_answers: two assistant messages in a row are shown.
        user_after_result: a user message may follow the result of a call.
        shows_tools: the offered tools are shown.
        shows_calls: calls and their results are shown.
        argument_text: arguments are JSON text instead of a mapping.
        malformed_arguments: arguments that are no JSON object may be text.
        parallel_calls: an answer may hold several calls.
        ids_name_calls: a call is shown by its id alone, which names the tool.
        reasoning_field: the field of an answer that thinking is read from; empty: the template shows none.
        reasoning_beside_content: an answer with calls may have thinking and content.
    """

    reads_parts: bool = False
    has_system: bool = True
    late_system: bool = True
    adjacent_users: bool = True
    adjacent_answers: bool = True
    user_after_result: bool = True
    shows_tools: bool = True
    shows_calls: bool = True
    argument_text: bool = False
    malformed_arguments: bool = True
    parallel_calls: bool = True
    ids_name_calls: bool = False
    reasoning_field: str = REASONING_FIELDS[0]
    reasoning_beside_content: bool = True


def probe(render: Render) -> TemplateDialect:
    """Find out what a template accepts. A template that renders nothing it knows gets the defaults."""
    shows = _Probe(render)
    reads_parts = not shows([_user(USER)], USER) and shows([_user(_part(USER))], USER)
    if reads_parts:
        shows = _Probe(lambda messages, tools: render([_with_parts(message) for message in messages], tools))
    elif not shows([_user(USER)], USER):
        return TemplateDialect()
    opening = [_user(USER), _answer(ANSWER)]
    late = [*opening, _system(SYSTEM), _user(LATER)], [*opening, _user(LATER), _system(SYSTEM)]
    dialect = TemplateDialect(
        reads_parts=reads_parts,
        has_system=shows([_system(SYSTEM), _user(USER)], SYSTEM, USER),
        late_system=shows(late[0], USER, ANSWER, SYSTEM, LATER) and shows(late[1], USER, ANSWER, LATER, SYSTEM),
        adjacent_users=shows([_user(USER), _user(LATER)], USER, LATER),
        adjacent_answers=shows([*opening, _answer(LATER), _user(LAST)], USER, ANSWER, LATER, LAST),
        shows_tools=shows([_user(USER)], DESCRIPTION, tools=TOOLS),
        reasoning_field=_reasoning_field(shows),
    )
    return _with_calls(dialect, shows)


def _with_calls(dialect: TemplateDialect, shows: _Probe) -> TemplateDialect:
    """Return the dialect with what is found out about calls."""
    forms = itertools.product((False, True), (False, True))
    for ids_name_calls, argument_text in forms:
        form = TemplateDialect(argument_text=argument_text, ids_name_calls=ids_name_calls)
        call, result = _called(form, VALUE), _result(form, RESULT)
        text = shows.text([_user(USER), call, result, _answer(ANSWER), _user(LAST)], TOOLS)
        bare = shows.text([_user(USER), call], ())
        # A mapping that is printed as Python, or text that is quoted once more, is the wrong form.
        garbled = f"'{KEY}'" in text or f'\\"{KEY}\\"' in text
        if VALUE in text and RESULT in text and TOOL in (bare or text) and not garbled:
            break
    else:
        return _replaced(dialect, shows_calls=False)
    second = _result(form, SECOND_RESULT, 1)
    both = [_user(USER), _called(form, VALUE, SECOND_VALUE), result, second, _answer(ANSWER), _user(LAST)]
    malformed = _called(form, VALUE)
    malformed["tool_calls"][0]["function"]["arguments"] = VALUE
    field = dialect.reasoning_field
    thought = {field: THOUGHT, "content": ANSWER} if field else {}
    return _replaced(
        dialect,
        argument_text=form.argument_text,
        ids_name_calls=form.ids_name_calls,
        malformed_arguments=shows([_user(USER), malformed, result], VALUE, tools=TOOLS),
        parallel_calls=shows(both, VALUE, SECOND_VALUE, RESULT, SECOND_RESULT, tools=TOOLS),
        user_after_result=shows([_user(USER), call, result, _user(LAST)], VALUE, RESULT, LAST, tools=TOOLS),
        reasoning_beside_content=not field or bool(shows.text([_user(USER), {**call, **thought}, result], TOOLS)),
    )


def _reasoning_field(shows: _Probe) -> str:
    """Return the first field that thinking is shown from: in a last answer, or between a call and its result."""
    for field in REASONING_FIELDS:
        answered = [_user(USER), {**_answer(ANSWER), field: THOUGHT}]
        called = [
            _user(USER),
            {**_called(TemplateDialect(), VALUE), field: THOUGHT},
            _result(TemplateDialect(), RESULT),
        ]
        if shows(answered, THOUGHT) or shows(called, THOUGHT, tools=TOOLS):
            return field
    return ""


class _Probe:
    """Renders small conversations; what the template raises counts as showing nothing."""

    def __init__(self, render: Render) -> None:
        self._render = render

    def text(self, messages: Sequence[TemplateMessage], tools: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self._render(messages, tools)
        except Exception:  # noqa: BLE001 - templates are programs: each error means that the input is refused
            return ""

    def __call__(
        self, messages: Sequence[TemplateMessage], *words: str, tools: Sequence[Mapping[str, Any]] = ()
    ) -> bool:
        """Whether the words are shown in this order."""
        text, position = self.text(messages, tools), 0
        for word in words:
            position = text.find(word, position)
            if position < 0:
                return False
            position += len(word)
        return True


def _system(text: str) -> TemplateMessage:
    return {"role": "system", "content": text}


def _user(content: Any) -> TemplateMessage:
    return {"role": "user", "content": content}


def _answer(text: str) -> TemplateMessage:
    return {"role": "assistant", "content": text}


def _called(form: TemplateDialect, *values: str) -> TemplateMessage:
    calls = []
    for number, value in enumerate(values):
        arguments = f'{{"{KEY}": "{value}"}}' if form.argument_text else {KEY: value}
        function = {"name": TOOL, "arguments": arguments}
        calls.append({"id": call_id(form, TOOL, number), "type": "function", "function": function})
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _result(form: TemplateDialect, text: str, number: int = 0) -> TemplateMessage:
    return {"role": "tool", "content": text, "tool_call_id": call_id(form, TOOL, number), "name": TOOL}


def call_id(form: TemplateDialect, name: str, number: int) -> str:
    """Return the id of call ``number`` of a conversation as the template wants it."""
    return f"functions.{name}:{number}" if form.ids_name_calls else f"call{number:05d}"


def _part(text: str) -> list[TemplateMessage]:
    return [{"type": "text", "text": text}]


def _with_parts(message: Mapping[str, Any]) -> TemplateMessage:
    content = message.get("content")
    return {**message, "content": _part(content)} if isinstance(content, str) else dict(message)


def _replaced(dialect: TemplateDialect, **changes: Any) -> TemplateDialect:
    return TemplateDialect(**{**vars(dialect), **changes})
