"""`kvlab lab`: JupyterLab over a copy of the notebooks."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from kvlab.cli.lab_index import INDEX_NAME, index_notebook
from kvlab.errors import RunError
from kvlab.paths import PACKAGE

NOTES = ".kvlab-notebooks.json"
"""The file with the names and digests of copied notebooks; by these, files that their owner changed are known."""

DEFAULT_FOLDER = "kvlab-notebooks"
OTHER_FLAGS = ("help-all", "version")
"""Options without a value that every Jupyter program has beside its own."""


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
    """Copy the notebooks and an index of them to ``folder``, which is made.

    A file that its owner changed, or had there before, stays.
    Raises RunError where the folder cannot be written to.
    """
    notebooks = sorted(notebooks_path().glob("[0-9]*.ipynb"))
    contents = {INDEX_NAME: index_notebook(notebooks)} | {path.name: path.read_bytes() for path in notebooks}
    written, kept = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _notes(folder)
        for name, ours in contents.items():
            target = folder / name
            if target.exists():
                theirs = target.read_bytes()
                if theirs == ours:
                    known[name] = _digest(ours)
                    continue
                if _digest(theirs) != known.get(name):
                    kept.append(name)
                    continue
            target.write_bytes(ours)
            known[name] = _digest(ours)
            written.append(name)
        (folder / NOTES).write_text(json.dumps(known, indent=1) + "\n")
    except OSError as error:
        raise RunError(
            f"cannot copy the notebooks to {folder} ({error.strerror}); choose another folder: kvlab lab DIR"
        ) from error
    return Copied(tuple(written), tuple(kept))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", metavar="[DIR] [JUPYTERLAB'S OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@click.option("--port", type=click.IntRange(1, 65535), help="Port of JupyterLab; else its own choice.")
@click.option("--no-browser", is_flag=True, help="Print the address instead of opening a browser.")
def lab(arguments: tuple[str, ...], port: int | None, no_browser: bool) -> None:
    """Open JupyterLab on a copy of the notebooks, in DIR (kvlab-notebooks); files that you changed stay yours.

    All options of JupyterLab are passed on to it, such as --ip=0.0.0.0 or --ServerApp.token=secret.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise RunError("JupyterLab is not installed here: pip install jupyterlab")
    folders, options = split_arguments(arguments, _takes_value)
    if len(folders) > 1:
        raise RunError(
            f"{folders[1]} is one folder too many; write kvlab lab DIR, and options of JupyterLab as --name=value"
        )
    folder = Path(folders[0] if folders else DEFAULT_FOLDER)
    copied = copy_notebooks(folder)
    for name in copied.kept:
        click.echo(f"kvlab: {folder / name} was changed by you and is kept; remove it to get ours", err=True)
    click.echo(f"kvlab: notebooks in {folder}, {len(copied.written)} new", err=True)
    command = [sys.executable, "-m", "jupyterlab", str(folder), f"--LabApp.default_url=/lab/tree/{INDEX_NAME}"]
    command += [f"--port={port}"] if port else []
    command += ["--no-browser"] if no_browser else []
    if is_root() and "--allow-root" not in options:
        click.echo(
            "kvlab: you are root, and so is what notebooks run; JupyterLab is started with --allow-root", err=True
        )
        command.append("--allow-root")
    sys.stderr.flush()
    os.execve(sys.executable, [*command, *options], _environment())  # replaces this process: a signal ends JupyterLab


def split_arguments(arguments: Sequence[str], takes_value: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """Split what was given into folders and options of JupyterLab; ``takes_value`` says of one whether a value follows.

    Raises what ``takes_value`` raises.
    """
    folders: list[str] = []
    options: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            folders.append(argument)
            continue
        options.append(argument)
        name, equals, _ = argument.partition("=")
        if takes_value(name) and not equals and left:
            options.append(left.pop(0))
    return folders, options


def is_root() -> bool:
    """Return whether this process has the rights of root, where there are such."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def _takes_value(option: str) -> bool:
    """Return whether a value follows an option of JupyterLab that was written without ``=``."""
    from jupyterlab.labapp import LabApp  # takes a second to import

    name = option.lstrip("-")
    if name in LabApp.flags or name in OTHER_FLAGS:
        return False
    if name in LabApp.aliases or "." in name:  # of a class: --ServerApp.token
        return True
    raise click.NoSuchOption(option, f"No such option {option}, of kvlab lab or of JupyterLab")


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
