"""`kvlab lab`: JupyterLab over a copy of the notebooks."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from kvlab.errors import RunError
from kvlab.paths import PACKAGE

NOTES = ".kvlab-notebooks.json"
"""The file with the names and digests of copied notebooks; by these, files that their owner changed are known."""


@dataclass(frozen=True)
class Copied:
    """The outcome of a copy, by file name: ``written`` new or renewed, ``kept`` because its owner had changed it."""

    written: tuple[str, ...]
    kept: tuple[str, ...]


def notebooks_path() -> Path:
    """Return the notebooks' folder: in the installed package, else in the source tree. Raises RunError when absent."""
    for folder in (PACKAGE / "_notebooks", PACKAGE.parent / "notebooks"):
        if any(folder.glob("[0-9]*.ipynb")):
            return folder
    raise RunError("the notebooks are missing from this installation: reinstall kvlab")


def copy_notebooks(folder: Path) -> Copied:
    """Copy the notebooks to ``folder``, which is made. A file that its owner changed, or had there before, stays.

    Raises RunError where the folder cannot be written to.
    """
    source = notebooks_path()
    written, kept = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _notes(folder)
        for path in sorted(source.glob("[0-9]*.ipynb")):
            ours, target = path.read_bytes(), folder / path.name
            if target.exists():
                theirs = target.read_bytes()
                if theirs == ours:
                    known[path.name] = _digest(ours)
                    continue
                if _digest(theirs) != known.get(path.name):
                    kept.append(path.name)
                    continue
            target.write_bytes(ours)
            known[path.name] = _digest(ours)
            written.append(path.name)
        (folder / NOTES).write_text(json.dumps(known, indent=1) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot copy the notebooks to {folder} ({error.strerror}); choose another folder: kvlab lab DIR"
        ) from error
    return Copied(tuple(written), tuple(kept))


@click.command()
@click.argument("folder", metavar="[DIR]", default="kvlab-notebooks", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), help="Port of JupyterLab; else its own choice.")
@click.option("--no-browser", is_flag=True, help="Print the address instead of opening a browser.")
def lab(folder: Path, port: int | None, no_browser: bool) -> None:
    """Open JupyterLab on a copy of the notebooks, in DIR (kvlab-notebooks); files that you changed stay yours."""
    if importlib.util.find_spec("jupyterlab") is None:
        raise RunError("JupyterLab is not installed here: pip install jupyterlab")
    copied = copy_notebooks(folder)
    for name in copied.kept:
        click.echo(f"kvlab: {folder / name} was changed by you and is kept; remove it to get ours", err=True)
    click.echo(f"kvlab: notebooks in {folder}, {len(copied.written)} new", err=True)
    command = [sys.executable, "-m", "jupyterlab", str(folder)]
    command += [f"--port={port}"] if port else []
    command += ["--no-browser"] if no_browser else []
    sys.stderr.flush()
    os.execve(sys.executable, command, _environment())  # replaces this process: a signal to it ends JupyterLab


def _environment() -> dict[str, str]:
    """Return this environment with this kvlab on the path, so that kernels import it from a source tree too."""
    here = str(PACKAGE.parent)
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{before}" if before else here}


def _notes(folder: Path) -> dict[str, str]:
    try:
        notes = json.loads((folder / NOTES).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
