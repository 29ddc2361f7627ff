"""What commands print: tables, quantities, and one JSON document."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

Document = dict[str, Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document, and nothing else.")


def answer(as_json: bool, work: Callable[[], Document], show: Callable[[Document], None] = lambda _: None) -> None:
    """Do the work, then print its document as JSON or as ``show`` does; with JSON all other output goes to stderr."""
    if not as_json:
        show(work())
        return
    with contextlib.redirect_stdout(sys.stderr):
        document = work()
    click.echo(json.dumps(document, indent=1, allow_nan=False, default=str))


def document(command: str, rows: Iterable[Mapping[str, Any]], **facts: Any) -> Document:
    """Return the JSON document of a command; ``facts`` go to its provenance."""
    from kvlab.provenance import document as made_by
    from kvlab.provenance import provenance

    return made_by(command, rows, provenance(**facts))


def quantity(value: Any, unit: str) -> str:
    """Return a value with its unit in three digits; bytes in decimal multiples."""
    if unit == "bytes":
        size, names = float(value), ["B", "KB", "MB", "GB", "TB"]
        while size >= 1000 and len(names) > 1:
            size, names = size / 1000, names[1:]
        return f"{size:.3g} {names[0]}"
    if isinstance(value, float):
        value = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value} {unit}".rstrip()


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print aligned columns; the last one wraps at the terminal's width."""
    texts = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *texts]) for i in range(len(columns))]
    indent = sum(widths[:-1]) + 2 * (len(columns) - 1)
    room = max(24, shutil.get_terminal_size((110, 24)).columns - indent)
    for line in [list(columns), ["-" * width for width in widths[:-1]] + ["-" * min(widths[-1], room)], *texts]:
        start = "".join(f"{cell:<{width}}  " for cell, width in zip(line[:-1], widths, strict=False))
        for i, part in enumerate(textwrap.wrap(line[-1], room) or [""]):
            click.echo(((start if i == 0 else " " * indent) + part).rstrip())
