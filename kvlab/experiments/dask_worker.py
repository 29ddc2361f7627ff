"""What a Dask worker does: run a group of cells with the model that this process keeps."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvlab.experiments.cell import Cell, CellResult, _with_model, execute, execute_forced
from kvlab.experiments.run import Run
from kvlab.paths import home
from kvlab.workloads import is_teacher_forced

LOADING_LOCK = "loading.lock"


def run_cells(cells: Sequence[Cell]) -> list[CellResult]:
    """Run cells of one group, which differ by their policy only where answers are forced. Raises KvlabError.

    SSD tiers lie in the worker's own folder, which its nanny removes after the worker's death.
    """
    first = cells[0]
    _load_once(first.run)
    with tempfile.TemporaryDirectory(prefix="kvlab-cell-", dir=_worker_folder()) as folder:
        if is_teacher_forced(first.run.workload):
            return execute_forced(cells, Path(folder))
        return [execute(cell, Path(folder)) for cell in cells]


def _load_once(run: Run) -> None:
    """Load the model of a run, one process of this machine at a time: the first one may have to fetch it."""
    key = (str(run.model), str(run.adapter), str(run.dtype))
    if key in _seen():
        return
    with _machine_lock():
        _with_model(run)
    _seen().add(key)


@functools.cache
def _seen() -> set[tuple[str, str, str]]:
    """Return the models that this process has loaded before."""
    return set()


@contextlib.contextmanager
def _machine_lock() -> Iterator[None]:
    """Hold a lock of this machine, which ends with the process; without one where there are no locks."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / LOADING_LOCK).open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _worker_folder() -> str | None:
    """Return the folder of the Dask worker that runs this; None outside one."""
    from distributed import get_worker

    try:
        return str(get_worker().local_directory)
    except ValueError:
        return None
