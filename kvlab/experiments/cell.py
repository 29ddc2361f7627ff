"""A cell: one policy at one point of a grid, run alone on any machine."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kvlab import models
from kvlab.errors import KvlabError
from kvlab.experiments.aggregate import aggregate
from kvlab.experiments.event_tables import Table, event_table
from kvlab.experiments.run import Run
from kvlab.experiments.runner import REFERENCE, Outcome
from kvlab.importing import UserFile, import_again
from kvlab.policies import Policy
from kvlab.results import Row
from kvlab.workloads import is_teacher_forced


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
        """Return all fields of the cell, ready for JSON; adapter, metrics, imports and data only where there are some.

        Imported files and data count by their content, wherever they lie.
        """
        run = {key: value for key, value in asdict(self.run).items() if key not in ("adapter", "metrics") or value}
        more: dict[str, Any] = {"imports": [file.sha256 for file in self.imports], "data": self.data}
        if self.run.metrics:
            more["metrics"] = [str(metric) for metric in self.run.metrics]
        cell = {**run, "repeat": self.repeat, "exact": self.exact, "events": list(self.events)}
        return cell | {key: value for key, value in more.items() if value}

    @property
    def policy(self) -> str:
        return str(self.run.policy)


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
    for file in cell.imports:
        import_again(file)
    policy = Policy.parse(cell.run.policy)
    about = {"repeat": cell.repeat, **({"tokens": cell.run.tokens} if cell.run.tokens else {})}
    try:
        if is_teacher_forced(cell.run.workload):
            forced = _with_model(cell.run).forced(progress=False, folder=folder).run([policy])
            return CellResult(cell, [{**row, **about} for row in forced.rows], forced.provenance, {})
        harness = _with_model(cell.run).harness(progress=False, folder=folder)
        outcome = harness.serve(policy, restart=cell.run.restart)
        uncached = None
        if policy == REFERENCE:
            uncached = outcome
        elif cell.exact and (policy.lossless or outcome.restarted):
            uncached = _uncached(replace(cell.run, policy=str(REFERENCE), restart=False))
        results = harness.results(policy, outcome, uncached, repeat=cell.repeat)
    except KvlabError as error:
        raise type(error)(f"{policy} on {cell.run.workload}: {error}") from error
    rows = [*results.rows, *aggregate(results)]
    events = {kind: event_table(results, kind) for kind in cell.events}
    return CellResult(cell, [{**row, **about} for row in rows], results.provenance, events)


@functools.lru_cache(maxsize=4)
def _uncached(run: Run) -> Outcome:
    return _with_model(run).harness(progress=False).serve(REFERENCE)


def _with_model(run: Run) -> Run:
    model = _loaded(*(None if part is None else str(part) for part in (run.model, run.adapter)))
    return replace(run, model=model, adapter=None)


@functools.lru_cache(maxsize=2)
def _loaded(model: str | None, adapter: str | None) -> models.LoadedModel:
    return models.load(model, adapter=adapter)
