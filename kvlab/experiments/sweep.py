"""A sweep: every cell of an experiment that is not finished yet, one after another, into a row store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from kvlab.experiments.cell import Cell, execute, execute_forced
from kvlab.experiments.config import Experiment, read_experiment
from kvlab.experiments.result_store import RowStore
from kvlab.experiments.run import check_repeats
from kvlab.experiments.sweep_report import print_report
from kvlab.results import Results, mark_void
from kvlab.workloads import is_teacher_forced

CLAIM_RETRY_S = 0.2
"""Seconds between two looks at cells that other processes run."""


def sweep(experiment: Experiment | str | Path, folder: Path | None = None, *, progress: bool = True) -> Results:
    """Run the missing cells of an experiment, or of an experiment file, and return all of its rows.

    `folder` is the row store, by default `runs/NAME`; a killed sweep continues where it was. The rows are saved there
    as a run, which `Results.load` reads. Raises KvlabError.
    """
    experiment = experiment if isinstance(experiment, Experiment) else read_experiment(experiment)
    store = RowStore(folder or default_folder(experiment))
    cells = experiment.cells()
    finish(cells, store, experiment.name, progress=progress)
    results = store.results(cells)
    results.provenance |= {"experiment": experiment.name, "cells": len(cells)}
    results.rows = mark_void(results.rows)
    results.save(store.folder)
    return results


def finish(cells: Sequence[Cell], store: RowStore, name: str, *, progress: bool = True) -> None:
    """Run those cells that the store lacks, beside other processes that do the same. Raises KvlabError."""
    with tqdm(total=len(cells), desc=name, unit="cell", disable=not progress) as bar:
        missing = _finished(store, cells, bar)
        while missing:
            waiting = [cell for group in _groups(missing) for cell in _do(store, group, bar)]
            missing = _finished(store, waiting, bar)
            if waiting and len(missing) == len(waiting):
                time.sleep(CLAIM_RETRY_S)


def default_folder(experiment: Experiment) -> Path:
    """Return the folder of an experiment, always the same, so that the same command continues a sweep."""
    return Path("runs") / experiment.name


def run_command(
    path: Path,
    out: Path | None = None,
    *,
    imports: Sequence[Path] = (),
    repeats: int | None = None,
    dtype: str | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Results:
    """Run `kvlab run`: the sweep; then print its table and the command that serves each policy, and write the report.

    `repeats` and `dtype` replace those of the file; `command` is the command line, for the provenance.
    """
    experiment = read_experiment(path, imports)
    if repeats is not None:
        check_repeats(repeats)
        experiment = replace(experiment, repeats=repeats)
    experiment = replace(experiment, dtype=dtype) if dtype else experiment
    folder = out or default_folder(experiment)
    before = sum(RowStore(folder).read(cell) is not None for cell in experiment.cells())
    results = sweep(experiment, folder, progress=progress)
    return print_report(experiment, results, folder, before=before, command=command)


def _finished(store: RowStore, cells: Sequence[Cell], bar: Any) -> list[Cell]:
    """Return the cells that are not finished; count the others on the bar."""
    missing = [cell for cell in cells if store.read(cell) is None]
    bar.update(len(cells) - len(missing))
    return missing


def _groups(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells in groups that are run at once: teacher-forced ones that differ by their policy only."""
    groups: dict[object, list[Cell]] = {}
    for cell in cells:
        forced = is_teacher_forced(cell.run.workload)
        key = replace(cell, run=replace(cell.run, policy="full")) if forced else cell
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def _do(store: RowStore, cells: Sequence[Cell], bar: Any) -> list[Cell]:
    """Run cells of a group; return those that another process runs or has just finished."""
    with contextlib.ExitStack() as stack:
        claimed = {cell: stack.enter_context(store.claim(cell)) for cell in cells}
        mine = {cell: work for cell, work in claimed.items() if work is not None and store.read(cell) is None}
        bar.set_postfix_str(", ".join(cell.policy for cell in mine), refresh=True)
        work = next(iter(mine.values()), None)
        if is_teacher_forced(cells[0].run.workload):
            made = execute_forced(list(mine), work) if mine else []
        else:
            made = [execute(cell, work) for cell in mine]
        for result in made:
            store.write(result)
    bar.update(len(mine))
    return [cell for cell in cells if cell not in mine]
