"""Colours that hold up: for readers who are colour-blind, on light pages and on dark ones.

Any two of `SERIES` stay apart (CIEDE2000 of 12 or more) as seen by everyone and under protanopia, deuteranopia and
tritanopia, and each stands out from its page (contrast of 3 or more). tests/unit/charts/test_colors.py measures that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tone:
    """One colour, `#rrggbb`, as it is on a light page and on a dark one."""

    light: str
    dark: str


GREY, BLUE, GREEN, ORANGE = (
    Tone("#77828f", "#b2b9c1"),
    Tone("#2351cb", "#7fbffd"),
    Tone("#2aa27d", "#239877"),
    Tone("#ca8111", "#f89f09"),
)
RED, PLUM, VIOLET, OLIVE = (
    Tone("#cb3d4a", "#e42c25"),
    Tone("#893271", "#a15393"),
    Tone("#a76de8", "#a062f8"),
    Tone("#4d5b11", "#e5e3a5"),
)
SERIES = (GREY, BLUE, GREEN, ORANGE, RED, PLUM, VIOLET, OLIVE)
"""Colours of policies, methods and parts; more of them would no longer hold up."""

PAGE = Tone("#ffffff", "#1d2127")
INK, SOFT_INK, FAINT_INK = Tone("#1d2127", "#eef1f4"), Tone("#444444", "#c3c9d1"), Tone("#666666", "#a9b1bc")
GUIDE = Tone("#8a919b", "#868e99")
"""Lines that only guide the eye."""
GRID, DOMAIN = Tone("#edeff2", "#31373f"), Tone("#b6bcc5", "#59626e")
EMPTY = Tone("#e9ecf0", "#2b3139")
"""The ground of a map where nothing happened."""
FIRST_EVICTED, LAST_EVICTED = Tone("#ec8a3d", "#b8501e"), Tone("#7a1f08", "#ffe0b0")
"""Ends of the scale of an eviction map: from the end of the prompt to the last decode step."""

TONES = (*SERIES, PAGE, INK, SOFT_INK, FAINT_INK, GUIDE, GRID, DOMAIN, EMPTY, FIRST_EVICTED, LAST_EVICTED)


def on_dark(spec: Any) -> Any:
    """Return a chart's spec for a dark page: its ground and every colour of this file in their dark tones.

    Other colours, such as those of tiers, stay: they must hold up on both.
    """
    return _translated(spec, {tone.light: tone.dark for tone in TONES})


def _translated(part: Any, dark: dict[str, str]) -> Any:
    if isinstance(part, dict):
        return {key: value if key == "datasets" else _translated(value, dark) for key, value in part.items()}
    if isinstance(part, list):
        return [_translated(one, dark) for one in part]
    return dark.get(part, part) if isinstance(part, str) else part
