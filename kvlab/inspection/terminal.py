"""The tokens of a sequence as text for a terminal, with or without colour. Knows strings only."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

from kvlab.counts import counted
from kvlab.inspection.tokens import EVICTED, KEPT, MEANINGS, RESTORED, SHARED, TokenState

IN_PART, MOSTLY = "in part", "mostly evicted"
STATES = (KEPT, RESTORED, SHARED, IN_PART, MOSTLY, EVICTED)
# The terminal's own colours, which suit its background; lines tell the states apart where colours look alike.
COLORS = {
    KEPT: "", RESTORED: "\x1b[32;4m", SHARED: "\x1b[34;4m",
    IN_PART: "\x1b[33m", MOSTLY: "\x1b[31m", EVICTED: "\x1b[31;9m",
}  # fmt: skip
RESET = "\x1b[0m"
MARKS = {
    KEPT: ("", ""), RESTORED: ("{+", "+}"), SHARED: ("{=", "=}"),
    IN_PART: ("[~", "~]"), MOSTLY: ("[~~", "~~]"), EVICTED: ("[-", "-]"),
}  # fmt: skip
FIRST_SHOWN, LAST_SHOWN = 160, 240
"""Tokens shown of the two ends of a long text, which would push the answer off the screen."""


def state_of(token: TokenState) -> str:
    """Return the state that a token is shown in: one of :data:`STATES`."""
    if token.state == EVICTED or not token.gone:
        return token.state
    return IN_PART if token.gone < 0.5 else MOSTLY


def tokens_text(texts: Sequence[str], states: Sequence[TokenState], *, color: bool, whole: bool = False) -> str:
    """Return tokens as text: coloured by state, or with a mark around each run of one state.

    Of more than a screen, the two ends are shown and the rest is counted by state, unless ``whole``.
    """
    hidden = 0 if whole else max(0, len(texts) - FIRST_SHOWN - LAST_SHOWN)
    if not hidden:
        return _runs(texts, states, color)
    end = FIRST_SHOWN + hidden
    counts = Counter(map(state_of, states[FIRST_SHOWN:end]))
    said = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    first, last = (_runs(texts[part], states[part], color) for part in (slice(FIRST_SHOWN), slice(end, None)))
    return f"{first}\n… {counted(hidden, 'token')}: {said} …\n{last}"


def legend(states: Sequence[TokenState], *, color: bool) -> str:
    """Return one line for each state that occurs, with its look, its count and its meaning."""
    counts = Counter(map(state_of, states))
    meanings = {
        **MEANINGS,
        IN_PART: "evicted from fewer than half of the layers and heads",
        MOSTLY: "evicted from half of them or more",
    }
    shown = [state for state in STATES if counts[state] or state in (KEPT, EVICTED)]
    wide = max(len(_look(state, f"{state} {counts[state]:,}", False)) for state in shown)
    lines = []
    for state in shown:
        plain = f"{state} {counts[state]:,}"
        room = " " * (wide - len(plain if color else _look(state, plain, False)))
        lines.append(f"{_look(state, plain, color)}{room}  {meanings[state]}")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Return text whose control characters cannot steer a terminal: each becomes its escape, such as ``\\x1b``."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    joins = code in (0x200C, 0x200D)  # between letters and between the parts of an emoji
    return character if joins else f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _runs(texts: Sequence[str], states: Sequence[TokenState], color: bool) -> str:
    parts, start = [], 0
    for state, run in groupby(states, key=state_of):
        end = start + len(list(run))
        parts.append(_look(state, printable("".join(texts[start:end])), color))
        start = end
    return "".join(parts)


def _look(state: str, text: str, color: bool) -> str:
    if not color:
        before, after = MARKS[state]
        return f"{before}{text}{after}"
    if not COLORS[state]:
        return text
    # A colour that reaches over the end of a line would fill the rest of it in some terminals.
    return "\n".join(f"{COLORS[state]}{line}{RESET}" if line else "" for line in text.split("\n"))
