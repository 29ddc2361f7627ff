"""Executes the notebooks and writes them as `.ipynb` beside their `.py`: `python notebooks/execute.py [NAME ...]`.

The `.py` (jupytext, percent format) is what is edited; the `.ipynb` is made from it, with outputs.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
TIMEOUT_S = 180  # of one cell
PROGRESS = re.compile(r"\d+%\|.*\| \d+/\d+ \[")
"""A bar of tqdm, as it stands at the end of its line."""


def names() -> list[str]:
    """The notebooks, in their order."""
    return sorted(path.stem for path in HERE.glob("[0-9]*.py"))


def read(name: str) -> Any:
    """A notebook without outputs, from its `.py`."""
    notebook = jupytext.read(HERE / f"{name}.py")
    notebook.metadata = nbformat.from_dict(
        {
            "jupytext": {"formats": "ipynb,py:percent"},
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for index, cell in enumerate(notebook.cells):
        cell["id"] = f"{name[:2]}-{index:02d}"
    return notebook


def execute(notebook: Any, folder: Path) -> Any:
    """Runs every cell in a new kernel that works in `folder`. Raises nbclient's CellExecutionError."""
    NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        store_widget_state=False, record_timing=False,
    ).execute()  # fmt: skip
    return notebook


def settle(notebook: Any) -> Any:
    """Leaves of every output what shows without a kernel: pictures, tables and text, no widgets and progress bars."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if WIDGET in output.get("data", {}):
                del output.data[WIDGET]
                if not set(output.data) - {"text/plain"}:
                    continue
            if output.get("name") == "stderr":
                output.text = without_progress(output.text)
                if not output.text.strip():
                    continue
            kept.append(output)
        cell.outputs = kept
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    return notebook


def without_progress(text: str) -> str:
    """What was written to stderr, warnings above all, without progress bars, which begin a line again and again."""
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").splitlines(keepends=True)]
    return "".join(line for line in lines if not PROGRESS.search(line))


def main(wanted: list[str]) -> int:
    import tempfile

    for name in wanted or names():
        with tempfile.TemporaryDirectory(prefix="kvlab-notebook-") as folder:
            done = settle(execute(read(name), Path(folder)))
        nbformat.write(done, HERE / f"{name}.ipynb")
        print(f"{name}: {(HERE / f'{name}.ipynb').stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
