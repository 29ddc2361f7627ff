"""JSON inside of generated text: where it ends, when more of it is still to come."""

from __future__ import annotations

import json
from typing import Any

from kvlab.server.structured.tool_formats import Progress

# Numbers stay text: where JSON ends does not depend on their size.
_ENDS = json.JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str)
_VALUES = json.JSONDecoder(strict=False)
PARTIAL_CHARACTERS = 12
"""Longest piece of JSON, such as half of an escape or of ``false``, that is an error only because it is cut."""


def json_end(text: str, start: int) -> int | Progress:
    """Return where the JSON value at ``start`` ends; ``OPEN`` when it is cut, ``BROKEN`` when it is no JSON."""
    try:
        return _ENDS.raw_decode(text, start)[1]
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos + PARTIAL_CHARACTERS > len(text)
        return Progress.OPEN if cut else Progress.BROKEN
    except (ValueError, RecursionError):
        return Progress.BROKEN


def skip_space(text: str, at: int, more: str = "") -> int:
    """Return the next position from ``at`` on that holds neither white space nor one of the characters ``more``."""
    while at < len(text) and (text[at].isspace() or text[at] in more):
        at += 1
    return at


def json_value(text: str, start: int = 0) -> tuple[Any, int]:
    """Return the JSON value at ``start`` and its end; line breaks in strings are accepted. Raises ValueError."""
    return _VALUES.raw_decode(text, start)


def is_start_of(text: str, wanted: str) -> bool:
    """Whether ``text`` begins with ``wanted``, or is the beginning of it."""
    return text.startswith(wanted) or wanted.startswith(text)
