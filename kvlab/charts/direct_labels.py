"""Names that stand beside lines and points instead of in a legend, moved apart where they would cover each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import altair as alt

from kvlab.charts.colors import SOFT_INK

FONT_SIZE, LINE_HEIGHT, LETTER_WIDTH = 11, 13.5, 6.0  # pixels
GAP = 8.0  # pixels between a point and its name
LONGEST = 46  # letters of a name on one line

Side = Literal["left", "right"]
Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""


@dataclass(frozen=True)
class Anchor:
    """A point in pixels from the upper left corner, and the name that belongs to it."""

    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Placed:
    """A name at its place; `x` is its left edge, or with `align` ``right`` its right one, `y` its middle."""

    anchor: Anchor
    x: float
    y: float
    align: Side

    @property
    def lines(self) -> list[str]:
        return split_name(self.anchor.name)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom."""
        width, half = LETTER_WIDTH * max(map(len, self.lines)), LINE_HEIGHT * len(self.lines) / 2
        left = self.x if self.align == "left" else self.x - width
        return left, self.y - half, left + width, self.y + half


def split_name(name: str) -> list[str]:
    """Return a long name as two or more lines, split before a module."""
    if len(name) <= LONGEST:
        return [name]
    lines = [""]
    for i, part in enumerate(name.split("|")):
        piece = f"|{part}" if i else part
        if lines[-1] and len(lines[-1] + piece) > LONGEST:
            lines.append("")
        lines[-1] += piece
    return lines


def at_line_ends(anchors: Sequence[Anchor], x: float, height: float) -> list[Placed]:
    """Place names in one column at `x`, in the order of their points, as near to them as they fit."""
    placed = sorted((Placed(one, x, one.y, "left") for one in anchors), key=lambda one: one.anchor.y)
    sizes = [one.box[3] - one.box[1] for one in placed]
    tops = [one.box[1] for one in placed]
    for i in range(1, len(tops)):  # down, each below the one before
        tops[i] = max(tops[i], tops[i - 1] + sizes[i - 1])
    limit = height + LINE_HEIGHT / 2
    for i in reversed(range(len(tops))):  # and up again, where the column is longer than the chart
        tops[i] = min(tops[i], limit - sizes[i])
        limit = tops[i]
    return [Placed(one.anchor, x, top + size / 2, "left") for one, top, size in zip(placed, tops, sizes, strict=True)]


def beside_points(
    anchors: Sequence[Anchor], width: float, height: float, *, blocked: Sequence[Box] = ()
) -> list[Placed]:
    """Place each name right of its point, or left where the chart ends; up or down where it would cover something.

    Other names, points, the `blocked` boxes and the lower axis are not covered.
    """
    points = [(one.x - GAP, one.y - GAP + 1, one.x + GAP, one.y + GAP - 1) for one in anchors]
    points += blocked
    placed: list[Placed] = []
    for one in sorted(anchors, key=lambda one: (one.y, one.x)):
        taken = [other.box for other in placed]
        options = []
        sides: tuple[tuple[Side, float], ...] = (("left", one.x + GAP + 2), ("right", one.x - GAP - 2))
        for step in range(-40, 41):
            for align, x in sides:
                option = Placed(one, x, one.y + step * LINE_HEIGHT / 2, align)
                outside = max(0.0, option.box[2] - width) + max(0.0, -option.box[0])
                if option.box[3] < height and not any(_overlap(option.box, box) for box in [*taken, *points]):
                    options.append((outside + abs(step) * LINE_HEIGHT / 2 + (align == "right"), option))
        placed.append(
            min(options, key=lambda found: found[0])[1] if options else Placed(one, one.x + GAP, one.y, "left")
        )
    return placed


def along(start: tuple[float, float], stop: tuple[float, float]) -> list[Box]:
    """Return boxes that cover the line between two points, for names to keep off."""
    (x0, y0), (x1, y1) = start, stop
    parts = max(1, math.ceil(math.dist(start, stop) / GAP))
    steps = [(x0 + (x1 - x0) * i / parts, y0 + (y1 - y0) * i / parts) for i in range(parts + 1)]
    return [
        (min(ax, bx) - 1, min(ay, by) - 1, max(ax, bx) + 1, max(ay, by) + 1) for (ax, ay), (bx, by) in pairwise(steps)
    ]


def name_marks(placed: Sequence[Placed], color: Any) -> list[Any]:
    """Return the layers that write the names, with a thin line to each point whose name is not right beside it."""
    if not placed:
        return []
    rows = []
    for one in placed:
        edge = one.x - 3 if one.align == "left" else one.x + 3
        moved = math.dist((edge, one.y), (one.anchor.x, one.anchor.y)) > 1.6 * GAP
        line = {"edge": edge if moved else one.anchor.x, "edge_y": one.y if moved else one.anchor.y}
        first = one.y - LINE_HEIGHT * (len(one.lines) - 1) / 2  # Vega places the first line
        rows.append({"policy": one.anchor.name, "name": one.lines, "x": one.x, "y": first, "align": one.align,
                     "from": one.anchor.x, "from_y": one.anchor.y, **line})  # fmt: skip
    marks = []
    data = alt.InlineData(values=rows)
    lines = alt.Chart(data).mark_rule(strokeWidth=1, opacity=0.8)
    marks.append(lines.encode(color=color, x=_pixels("from"), y=_pixels("from_y", "Y"), x2="edge:Q", y2="edge_y:Q"))
    sides: tuple[Side, ...] = ("left", "right")
    for align in (side for side in sides if any(one.align == side for one in placed)):
        own = alt.InlineData(values=[row for row in rows if row["align"] == align])
        # In ink and not in the policy's colour, so that small letters can be read.
        style: dict[str, Any] = {
            "fontSize": FONT_SIZE,
            "lineHeight": LINE_HEIGHT,
            "color": SOFT_INK.light,
            "baseline": "middle",
        }
        text = alt.Chart(own).mark_text(**style, align=align)
        marks.append(text.encode(x=_pixels("x"), y=_pixels("y", "Y"), text="name:N"))
    return marks


def _pixels(field: str, axis: str = "X") -> Any:
    return getattr(alt, axis)(f"{field}:Q", scale=None, axis=None)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
