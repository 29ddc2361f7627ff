"""The index notebook of ``kvlab lab``, made of the notebooks' own first words, so that it is never out of date."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

INDEX_NAME = "00_index.ipynb"
HEAD = """# kvlab: notebooks

Each runs from top to bottom in about a minute: *Run*, then *Run All Cells*. They are copies and yours to change: what
you have changed is kept when you start `kvlab lab` again after an update.
"""
TAIL = """---

In a terminal: `kvlab ask "a question" --policy snapkv:budget=0.5` answers and shows what became of every token,
`kvlab demo` compares five policies, `kvlab --help` lists the rest.
"""


def index_notebook(notebooks: Iterable[Path]) -> bytes:
    """Return a notebook of one Markdown cell with a link to each notebook and its first paragraph."""
    entries = []
    for path in notebooks:
        title, paragraph = _opening(path)
        entries.append(f"### [{title}]({path.name})\n\n{paragraph}\n")
    cell = {"cell_type": "markdown", "id": "index", "metadata": {}, "source": "\n".join([HEAD, *entries, TAIL])}
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    made = {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1).encode() + b"\n"


def _opening(path: Path) -> tuple[str, str]:
    """Return the title and the first paragraph of a notebook; its name where it begins with no title."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = cells[0]["source"] if cells and cells[0]["cell_type"] == "markdown" else ""
    text = (source if isinstance(source, str) else "".join(source)).strip()
    title, _, rest = text.partition("\n")
    if not title.startswith("# "):
        return path.stem, text.partition("\n\n")[0]
    return title.removeprefix("# ").strip(), rest.strip().partition("\n\n")[0]
