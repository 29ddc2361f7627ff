"""Where the keys and values of a tool call are in a text, whatever form a model's template writes calls in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PROSE, NAME, ARGUMENT, SYNTAX = "prose", "name", "argument", "syntax"
TOKEN_KINDS = (PROSE, NAME, ARGUMENT, SYNTAX)
"""Kinds of tokens: text, names and arguments of calls, and what the form of a call adds (brackets, tags, quotes)."""


@dataclass(frozen=True)
class Span:
    """Characters ``start`` to ``stop`` (exclusive) of a text, and the kind of what they say."""

    kind: str
    start: int
    stop: int


def argument_spans(text: str, begin: int, end: int, arguments: Mapping[str, Any]) -> list[Span]:
    """Return the spans of the keys and values of ``arguments``, which are written in ``text[begin:end]``.

    They are searched for as JSON, as Python and as plain text, in their order, or else from the beginning (templates
    may sort keys). Where none is found, all of the text counts as arguments.
    """
    if begin >= end:
        return []
    # The quotes of the first and the last one may stand just outside.
    found = list(_argument_places(text, max(0, begin - 1), min(len(text), end + 1), arguments)) or [(begin, end)]
    return [Span(ARGUMENT, *place) for place in found]


def kind_of(start: int, stop: int, spans: Sequence[Span]) -> str:
    """Return the kind of a token at the characters ``start`` to ``stop``; ``prose`` outside of all spans.

    A token with characters of two kinds counts as a name, else as an argument. A token that shows no text counts as
    the text at its place.
    """
    stop = max(stop, start + 1)
    found = {span.kind for span in spans if span.start < stop and start < span.stop}
    return next((kind for kind in (NAME, ARGUMENT, SYNTAX) if kind in found), PROSE)


def changed_part(text: str, other: str) -> tuple[int, int] | None:
    """Return which characters of ``text`` are other ones in ``other``; None where the texts are equal.

    Both begin and end with the same characters; what is between them is the changed part.
    """
    if text == other:
        return None
    most = min(len(text), len(other))
    start = next((i for i in range(most) if text[i] != other[i]), most)
    same = next((i for i in range(most - start) if text[-1 - i] != other[-1 - i]), most - start)
    return start, len(text) - same


def _argument_places(text: str, begin: int, end: int, arguments: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the places of keys and values between ``begin`` and ``end``; one that is not there is left out."""
    at = begin
    for key, value in arguments.items():
        found = _key(text, key, at, end) or _key(text, key, begin, end)
        if found is not None:
            yield found
            at = found[1]
        place = _value(text, value, at, end)
        if place is not None:
            yield place
            at = place[1]


def _key(text: str, key: str, begin: int, end: int) -> tuple[int, int] | None:
    quoted = [json.dumps(key, ensure_ascii=False), json.dumps(key), f"'{key}'"]
    return _first(text, begin, end, quoted, 1) or _word(text, key, begin, end)


def _value(text: str, value: Any, begin: int, end: int) -> tuple[int, int] | None:
    if isinstance(value, str):
        escaped = [json.dumps(value, ensure_ascii=False), json.dumps(value), repr(value)]
        return _first(text, begin, end, escaped, 1) or (_word(text, value, begin, end) if value else None)
    if isinstance(value, Mapping | list | tuple) and value:
        inner = list(_inner_places(text, value, begin, end))
        return (min(start for start, _ in inner), max(stop for _, stop in inner)) if inner else None
    for written in dict.fromkeys((json.dumps(value), repr(value), str(value))):
        if found := _word(text, written, begin, end):
            return found
    return None


def _inner_places(text: str, value: Any, begin: int, end: int) -> Iterator[tuple[int, int]]:
    if isinstance(value, Mapping):
        yield from _argument_places(text, begin, end, value)
        return
    at = begin
    for item in value:
        place = _value(text, item, at, end)
        if place is not None:
            yield place
            at = place[1]


def _first(text: str, begin: int, end: int, written: Sequence[str], trim: int = 0) -> tuple[int, int] | None:
    """Return the earliest place of one of the spellings, without ``trim`` characters of quotes on both sides."""
    places = [(text.find(one, begin, end), one) for one in written]
    start, one = min(((at, one) for at, one in places if at >= 0), default=(-1, ""))
    return None if start < 0 else (start + trim, start + len(one) - trim)


def _word(text: str, word: str, begin: int, end: int) -> tuple[int, int] | None:
    """Return the first place of ``word`` that is no part of a longer word or number."""
    before, after = (r"(?<![\w.])" if word[:1].isalnum() else ""), (r"(?![\w])" if word[-1:].isalnum() else "")
    match = re.compile(before + re.escape(word) + after).search(text, begin, end)
    return None if match is None else match.span()
