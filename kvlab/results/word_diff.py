"""The difference of two texts, word by word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

SAME, ADDED, REMOVED = "same", "added", "removed"
Piece = tuple[str, str]
"""One of SAME, ADDED and REMOVED, and the text."""

MAX_PAIRS = 250_000
"""Words of one text times words of the other, beyond equal beginning and end; more are one difference, unread."""

# Scripts without spaces: every character is a word of its own.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"\s*(?:[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+|[^\w\s])|\s+")


def words(text: str) -> list[str]:
    """Split a text into words, each with the space before it, and single signs; joined they are the text."""
    return _WORD.findall(text)


def word_diff(before: str, after: str) -> list[Piece]:
    """Return pieces of both texts: SAME and ADDED joined are `after`, SAME and REMOVED joined are `before`."""
    old, new = words(before), words(after)
    head = _common(old, new)
    tail = _common(old[head:][::-1], new[head:][::-1])
    middle = _middle(old[head : len(old) - tail], new[head : len(new) - tail])
    pieces = [(SAME, new[:head]), *middle, (SAME, new[len(new) - tail :])]
    return [(kind, "".join(some)) for kind, some in pieces if some]


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _middle(old: list[str], new: list[str]) -> list[tuple[str, list[str]]]:
    if len(old) * len(new) > MAX_PAIRS:
        return [(REMOVED, old), (ADDED, new)]
    pieces: list[tuple[str, list[str]]] = []
    for kind, a, b, c, d in SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            pieces.append((SAME, new[c:d]))
        else:
            pieces += [(REMOVED, old[a:b]), (ADDED, new[c:d])]
    return pieces
