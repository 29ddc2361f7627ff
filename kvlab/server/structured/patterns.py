"""Regular expressions in schemas: which of them a grammar can enforce, and at what size."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

MAX_PATTERN_CHARACTERS = 2_000
MAX_PATTERN_STATES = 5_000
"""Characters of a pattern with its repeats written out. Beyond, a lexer may run out of states within an answer."""
MAX_PATTERN_DEPTH = 40
"""Groups inside each other."""


def why_unenforceable(pattern: str) -> str:
    """Say why a grammar does not enforce ``pattern``; empty where it may.

    Look-arounds, back references and word boundaries have no automaton of bounded size.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return f"a pattern of more than {MAX_PATTERN_CHARACTERS} characters"
    depth = most = 0
    for i, letter in enumerate(pattern):
        if letter in "()" and (i == 0 or pattern[i - 1] != "\\"):
            depth += 1 if letter == "(" else -1
            most = max(most, depth)
    if most > MAX_PATTERN_DEPTH:
        return f"more than {MAX_PATTERN_DEPTH} groups inside each other"
    parsed = _parsed(pattern)
    if parsed is None:  # syntax of another dialect, such as \p{L}: the compiler decides
        return "" if not _repeats_beyond(pattern) else "too many repeats"
    kinds = {str(kind) for kind in _kinds(parsed)}
    if kinds & {"ASSERT", "ASSERT_NOT"}:
        return "a look-around"
    if kinds & {"GROUPREF", "GROUPREF_EXISTS"}:
        return "a back reference"
    if kinds & {"AT_BOUNDARY", "AT_NON_BOUNDARY"}:
        return "a word boundary"
    return "too many repeats" if _states(parsed) > MAX_PATTERN_STATES else ""


def example(pattern: str) -> str:
    """Return a short text that ``pattern`` matches, or nearly; a hint for how a text under it may end."""
    parsed = _parsed(pattern) if len(pattern) <= MAX_PATTERN_CHARACTERS else None
    return "" if parsed is None else _example(parsed)[:500]


def _parsed(pattern: str) -> Any:
    from re import _parser  # type: ignore[attr-defined]  # the standard library's own syntax tree

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError):
        return None


def _repeats_beyond(pattern: str) -> bool:
    counts = [int(count[-9:]) for count in re.findall(r"\{(?:\d*,)?(\d+)\}", pattern)]
    product = 1
    for count in counts:
        product *= max(1, count)
    return product > MAX_PATTERN_STATES


def _kinds(parsed: Any) -> Iterator[Any]:
    for kind, argument in parsed:
        yield kind
        if str(kind) == "AT":
            yield argument
        for inner in _inner(argument):
            yield from _kinds(inner)


def _inner(argument: Any) -> Iterator[Any]:
    """Yield the patterns inside one node of the tree."""
    if hasattr(argument, "getwidth"):
        yield argument
    elif isinstance(argument, tuple | list):
        for part in argument:
            yield from _inner(part)


def _states(parsed: Any) -> int:
    total = 0
    for kind, argument in parsed:
        inside = sum(_states(inner) for inner in _inner(argument))
        if "REPEAT" in str(kind):
            least, most = int(argument[0]), int(argument[1])
            inside *= max(1, least if most >= 2**31 else most)
        total = min(total + max(1, inside), 10**9)
    return total


def _example(parsed: Any) -> str:
    made = ""
    for kind, argument in parsed:
        name = str(kind)
        if name == "LITERAL":
            made += chr(argument)
        elif name == "IN":
            made += _member(argument)
        elif name in ("ANY", "NOT_LITERAL"):
            made += "a" if argument != ord("a") else "b"
        elif name == "BRANCH":
            made += min((_example(option) for option in argument[1]), key=len)
        elif "REPEAT" in name:
            made += (_example(argument[2]) * min(int(argument[0]), 500))[:500]
        else:
            made += "".join(_example(inner) for inner in _inner(argument))
        if len(made) > 500:
            break
    return made


def _member(options: Any) -> str:
    for kind, argument in options:
        name = str(kind)
        if name == "NEGATE":
            return "a"
        if name == "LITERAL":
            return chr(argument)
        if name == "RANGE":
            return chr(argument[0])
        if name == "CATEGORY":
            return {"CATEGORY_DIGIT": "0", "CATEGORY_SPACE": " "}.get(str(argument), "a")
    return "a"
