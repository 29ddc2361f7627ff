"""A sweep on a Dask cluster: workers run cells, this process alone writes the row store.

A cell is claimed in the row store while it is with a worker, as in a sweep of one process, so that several sweeps of
either kind may work on one folder. Only a few cells a worker are under way at a time: what is not finished when this
process is killed is not in the store, and the same command does it again.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from kvlab.errors import KvlabError, RunError
from kvlab.experiments.cell import Cell, CellResult
from kvlab.experiments.config import Experiment, read_experiment
from kvlab.experiments.dask_cluster import SchedulerChoice, check_threads, connected
from kvlab.experiments.dask_worker import run_cells
from kvlab.experiments.result_store import RowStore
from kvlab.experiments.run import check_repeats
from kvlab.experiments.sweep import CLAIM_RETRY_S, _finished, _groups, default_folder, sweep
from kvlab.experiments.sweep_report import print_report
from kvlab.results import Results

if TYPE_CHECKING:
    from distributed import Client, Future

GROUPS_PER_WORKER = 2
"""Groups of cells under way for each worker: one that runs, and the next, which then need not be waited for."""
MAX_DEATHS = 5
"""Workers that may die with a cell before the sweep ends: the cell is to blame then, most likely for its memory."""
WAIT_S = 0.5
"""Seconds after which new workers are looked for while no cell ends."""

Task = Callable[[Sequence[Cell]], list[CellResult]]


def distributed_sweep(
    experiment: Experiment | str | Path,
    scheduler: str,
    folder: Path | None = None,
    *,
    progress: bool = True,
) -> Results:
    """Do as :func:`kvlab.experiments.sweep.sweep`, with the cells on the workers of a Dask cluster.

    `scheduler` is `local:N`, for N workers on this machine, or the address of a scheduler. Raises KvlabError.
    """
    experiment = experiment if isinstance(experiment, Experiment) else read_experiment(experiment)
    choice = SchedulerChoice.parse(scheduler)
    folder = folder or default_folder(experiment)
    store, cells = RowStore(folder), experiment.cells()
    if any(store.read(cell) is None for cell in cells):
        with connected(choice) as client:
            finish_on(client, cells, store, experiment.name, progress=progress)
    return sweep(experiment, folder, progress=False)  # all cells are there: it reads, marks and saves the rows


def distributed_command(
    path: Path,
    scheduler: str,
    out: Path | None = None,
    *,
    imports: Sequence[Path] = (),
    repeats: int | None = None,
    dtype: str | None = None,
    command: str | None = None,
) -> Results:
    """Run `kvlab run --scheduler`: the sweep, then what `kvlab run` prints and writes."""
    SchedulerChoice.parse(scheduler)  # before the folder is made
    experiment = read_experiment(path, imports)
    if repeats is not None:
        check_repeats(repeats)
        experiment = replace(experiment, repeats=repeats)
    experiment = replace(experiment, dtype=dtype) if dtype else experiment
    folder = out or default_folder(experiment)
    before = sum(RowStore(folder).read(cell) is not None for cell in experiment.cells())
    results = distributed_sweep(experiment, scheduler, folder)
    return print_report(experiment, results, folder, before=before, command=command)


def finish_on(
    client: Client,
    cells: Sequence[Cell],
    store: RowStore,
    name: str,
    *,
    progress: bool = True,
    task: Task = run_cells,
) -> None:
    """Run those cells that the store lacks on the workers of `client`. Raises KvlabError, the first one of a cell."""
    with tqdm(total=len(cells), desc=name, unit="cell", disable=not progress) as bar:
        if progress:
            show_link(client.dashboard_link)
        missing = _finished(store, cells, bar)
        Distribution(client, store, bar, task).run(_groups(missing))


class Distribution:
    """The groups of cells of one sweep, on their way to the workers and back."""

    def __init__(self, client: Client, store: RowStore, bar: Any, task: Task = run_cells) -> None:
        self.client, self.store, self.bar, self.task = client, store, bar, task
        self.deaths: Counter[Cell] = Counter()
        self.running: dict[Future, tuple[list[Cell], contextlib.ExitStack]] = {}

    def run(self, groups: Sequence[Sequence[Cell]]) -> None:
        """Run all groups; on an error the others are cancelled. Raises KvlabError."""
        waiting = deque(list(group) for group in groups)
        try:
            while waiting or self.running:
                self._submit(waiting)
                if self.running:
                    for future in self._ended():
                        waiting.extendleft(self._collect(future))
                else:  # every cell left is with another process
                    time.sleep(CLAIM_RETRY_S)
        finally:
            for future, (_, claims) in self.running.items():
                future.cancel()
                claims.close()

    def _submit(self, waiting: deque[list[Cell]]) -> None:
        """Submit groups until every worker has enough; a group that another process runs goes behind the others."""
        threads = self.client.nthreads()
        check_threads(threads)
        places = GROUPS_PER_WORKER * max(1, len(threads)) - len(self.running)
        for _ in range(len(waiting)):
            if places <= 0:
                return
            group, claims, mine = waiting.popleft(), contextlib.ExitStack(), list[Cell]()
            for cell in group:
                is_free = claims.enter_context(self.store.claim(cell)) is not None
                if self.store.read(cell) is not None:
                    self.bar.update()
                elif is_free:
                    mine.append(cell)
            if others := [cell for cell in group if cell not in mine and self.store.read(cell) is None]:
                waiting.append(others)
            if not mine:
                claims.close()
                continue
            future = self.client.submit(self.task, mine, pure=False, retries=0)
            self.running[future] = (mine, claims)
            places -= 1

    def _ended(self) -> list[Future]:
        """Return the futures that have ended, after a while maybe none."""
        from distributed import CancelledError, wait

        if self.client.status not in ("running", "connecting"):
            raise RunError("the Dask scheduler is gone; the same command does what is missing")
        with contextlib.suppress(TimeoutError, CancelledError):
            wait(list(self.running), timeout=WAIT_S, return_when="FIRST_COMPLETED")
        return [future for future in self.running if future.status != "pending"]

    def _collect(self, future: Future) -> list[list[Cell]]:
        """Write the results of a future; return its group again where its worker died. Raises KvlabError."""
        from distributed import CancelledError, KilledWorker

        group, claims = self.running.pop(future)
        with claims:
            try:
                made = future.result()
            except KvlabError:
                raise
            except (KilledWorker, CancelledError):
                return [self._again(group)]
            except Exception as error:
                raise RunError(f"{_names(group)}: {type(error).__name__}: {error}") from error
            for result in made:
                self.store.write(result)
            self.bar.update(len(group))
            return []

    def _again(self, group: list[Cell]) -> list[Cell]:
        """Return a group that was lost with its worker. Raises RunError where that happened too often."""
        self.deaths.update(group)
        if not self.bar.disable:
            tqdm.write(f"a worker died with {_names(group)}, which is run again")
        if self.deaths[group[0]] >= MAX_DEATHS:
            raise RunError(
                f"{_names(group)}: {MAX_DEATHS} workers died with it; it may need more memory than they have: use "
                "fewer workers a machine, or a smaller concurrency"
            )
        return group


def _names(group: Sequence[Cell]) -> str:
    return ", ".join(cell.policy for cell in group)


def show_link(link: str) -> None:
    """Show where Dask's dashboard is, as a link in a notebook."""
    try:
        from IPython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        shell = None
    else:
        shell = get_ipython()
    if shell is not None and shell.has_trait("kernel"):
        display(HTML(f'Dask: <a href="{link}" target="_blank">{link}</a>'))
    else:
        tqdm.write(f"Dask's dashboard: {link}")
