"""The folders of runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kvlab.errors import RunError


def new_run_folder(out: Path | None, command: str) -> Path:
    """Return `out`, or the name of a new folder in `runs/`, made of the command and the time."""
    if out is not None:
        return out
    wanted = folder = Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    count = 2
    while folder.exists():
        folder, count = wanted.with_name(f"{wanted.name}-{count}"), count + 1
    return folder


def make_folder(folder: Path) -> None:
    """Make a folder. Raises RunError where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the run folder {folder} ({error.strerror}); choose another one") from error
    if not os.access(folder, os.W_OK):
        raise RunError(f"cannot write to the run folder {folder}; choose another one")
