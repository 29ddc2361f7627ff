"""A table that a result shows of itself: as text, and as HTML in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

Line = Mapping[str, str]


def as_text(title: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Return the title, the names of the columns and the lines, in columns of one width."""
    whole = [dict(zip(columns, columns, strict=True)), *lines]
    widths = {name: max(len(line[name]) for line in whole) for name in columns}
    texts = ("  ".join(f"{line[name]:<{widths[name]}}" for name in columns).rstrip() for line in whole)
    return "\n".join([title, *texts])


def as_html(title: str, columns: Sequence[str], lines: Sequence[Line]) -> str:
    """Return the same as HTML; the first column holds names, the others numbers."""

    def row(tag: str, line: Line) -> str:
        sides = ("left" if name == columns[0] else "right" for name in columns)
        cells = zip(columns, sides, strict=True)
        return "".join(f"<{tag} style='text-align:{side}'>{html.escape(line[name])}</{tag}>" for name, side in cells)

    head = row("th", dict(zip(columns, columns, strict=True)))
    body = "".join(f"<tr>{row('td', line)}</tr>" for line in lines)
    return (
        f"<div style='margin:2px 0 8px'>{html.escape(title)}</div>"
        f"<div style='overflow-x:auto'><table><tr>{head}</tr>{body}</table></div>"
    )
