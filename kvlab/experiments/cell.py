"""A cell: one policy at one point of a grid, run alone on any machine."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kvlab import models
from kvlab.decoder.shared_prompts import SharedPrompts
from kvlab.errors import KvlabError
from kvlab.experiments.aggregate import aggregate
from kvlab.experiments.event_tables import Table, event_table
from kvlab.experiments.run import Run, policies_only
from kvlab.experiments.runner import REFERENCE, Outcome
from kvlab.importing import UserFile, import_again
from kvlab.results import Row
from kvlab.systems import System, policy_of
from kvlab.workloads import is_teacher_forced

RARE = ("adapter", "metrics", "share_prompts", "system", "dtype")
"""Settings that a cell's content names only where they are used, so that cells without them keep their id."""


@dataclass(frozen=True)
class Cell:
    """A frozen, picklable value that depends on no other cell. Its run names its parts; it holds no loaded model.

    Args:
        run: policy, workload, model and settings.
        repeat: the number of this measurement, from 0.
        exact: compare with the run without a cache, where the policy is lossless or there is a restart.
        events: kinds of events to keep.
        imports: files of the user's own code, imported before the policy is read, as they were then.
        data: SHA-256 of the file that the workload reads; empty without one.
    """

    run: Run
    repeat: int = 0
    exact: bool = True
    events: tuple[str, ...] = ()
    imports: tuple[UserFile, ...] = ()
    data: str = ""

    @functools.cached_property
    def id(self) -> str:
        """Hash of the content, equal on every machine and in every process."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()[:16]

    def content(self) -> dict[str, Any]:
        """Return all fields of the cell, ready for JSON; those that are new or rare only where they hold something.

        Imported files and data count by their content, wherever they lie.
        """
        run = {key: value for key, value in asdict(self.run).items() if key not in RARE or value}
        if self.run.system:  # a change of the preset makes another cell
            run["settings"] = {key: str(value) for key, value in System.parse(self.run.system).settings.items()}
        more: dict[str, Any] = {"imports": [file.sha256 for file in self.imports], "data": self.data}
        if self.run.metrics:
            more["metrics"] = [str(metric) for metric in self.run.metrics]
        cell = {**run, "repeat": self.repeat, "exact": self.exact, "events": list(self.events)}
        return cell | {key: value for key, value in more.items() if value}

    @property
    def policy(self) -> str:
        return self.run.system or str(self.run.policy)


@dataclass(frozen=True)
class CellResult:
    """The tidy rows of a cell, their provenance, and the kept events, as columns by kind."""

    cell: Cell
    rows: list[Row]
    provenance: dict[str, Any]
    events: dict[str, Table]


def execute(cell: Cell, folder: Path | None = None) -> CellResult:
    """Run a cell; SSD tiers lie in `folder` meanwhile, else in a temporary one.

    Model and uncached run are kept for the next cells of this process. Raises KvlabError, with the policy's name.
    """
    if is_teacher_forced(cell.run.workload):
        return execute_forced([cell], folder)[0]
    for file in cell.imports:
        import_again(file)
    candidate = cell.run.candidate
    policy = policy_of(candidate)
    shared = _shared_prompts(cell.run.share_prompts)
    try:
        harness = _with_model(cell.run).harness(progress=False, folder=folder, shared=shared)
        outcome = harness.serve(candidate, restart=cell.run.restart)
        uncached = None
        if candidate == REFERENCE:
            uncached = outcome
        elif cell.exact and (policy.lossless or outcome.restarted):
            uncached = _uncached(replace(cell.run, policy=str(REFERENCE), system=None, restart=False))
        results = harness.results(candidate, outcome, uncached, repeat=cell.repeat)
    except KvlabError as error:
        raise type(error)(f"{candidate} on {cell.run.workload}: {error}") from error
    rows = [*results.rows, *aggregate(results)]
    events = {kind: event_table(results, kind) for kind in cell.events}
    return CellResult(cell, _about(cell, rows), results.provenance, events)


def execute_forced(cells: Sequence[Cell], folder: Path | None = None) -> list[CellResult]:
    """Run teacher-forced cells that differ by their policy only; ``full`` is computed once for all of them.

    Raises KvlabError, with the names of the policies.
    """
    for file in cells[0].imports:
        import_again(file)
    run = cells[0].run
    policies = {cell: policies_only([cell.run.candidate])[0] for cell in cells}
    try:
        runner = _with_model(run).forced(progress=False, folder=folder, shared=_shared_prompts(run.share_prompts))
        results = runner.run(list(dict.fromkeys(policies.values())))
    except KvlabError as error:
        raise type(error)(f"{', '.join(map(str, policies.values()))} on {run.workload}: {error}") from error
    made = []
    for cell, policy in policies.items():
        rows = [row for row in results.rows if row["policy"] == str(policy)]
        made.append(CellResult(cell, _about(cell, rows), dict(results.provenance), {}))
    return made


def _about(cell: Cell, rows: Iterable[Row]) -> list[Row]:
    """Return rows with what the cell says of all of them."""
    about = {"repeat": cell.repeat, **({"tokens": cell.run.tokens} if cell.run.tokens else {})}
    return [{**row, **about} for row in rows]


@functools.lru_cache(maxsize=4)
def _uncached(run: Run) -> Outcome:
    return _with_model(run).harness(progress=False, shared=_shared_prompts(run.share_prompts)).serve(REFERENCE)


@functools.lru_cache(maxsize=1)
def _shared_prompts(size: str | None) -> SharedPrompts | None:
    """Return the prompts of this process, which its cells share as long as they are of one size."""
    return None if size is None else SharedPrompts(size)


def _with_model(run: Run) -> Run:
    model = _loaded(*(None if part is None else str(part) for part in (run.model, run.adapter, run.dtype)))
    return replace(run, model=model, adapter=None, dtype=None)


@functools.lru_cache(maxsize=2)
def _loaded(model: str | None, adapter: str | None, dtype: str | None) -> models.LoadedModel:
    return models.load(model, adapter=adapter, dtype=dtype)
