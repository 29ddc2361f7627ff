"""Colours of policies in HTML, for light and dark pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvlab.charts.colors import Tone  # brings Altair, which takes a moment to import


def paint(name: str, tone: Tone) -> str:
    """Return the CSS property `name` in this tone, as the page is light or dark; old browsers take the light one."""
    return f"{name}:{tone.light};{name}:light-dark({tone.light},{tone.dark})"


def dot(tone: Tone | None) -> str:
    """Return the dot before a policy's name; empty without a tone."""
    style = "display:inline-block;width:9px;height:9px;border-radius:5px;margin-right:7px"
    return f"<span style='{style};{paint('background', tone)}'></span>" if tone else ""
