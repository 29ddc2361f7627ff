"""The saved rows of an experiment, as small text files that diff well: rows and events as CSV, provenance as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from kvlab.errors import RunError
from kvlab.experiments.config import read_experiment
from kvlab.experiments.result_store import RowStore
from kvlab.experiments.sweep import sweep
from kvlab.figures.relevant_code import changed, relevant_code
from kvlab.figures.script import Script
from kvlab.results import SCHEMA, Results, make_folder

FACTS = (
    *("kvlab", "commit", "commits", "mlx", "mlx_lm", "python", "device", "blas", "time"),
    *("model", "model_fingerprint", "dtype", "code", "confirmed"),
)
"""The saved part of the provenance: the origin of the rows, without folders of the machine.

``code`` is the fingerprint of `relevant_code` when they were measured, or when a sample of them was ``confirmed``:
its commit, its time, and how many cells of how many.
"""

DIGITS = 6  # significant ones of a value that is no whole number


@dataclass(frozen=True)
class Saved:
    """Rows of one or more experiments (columns of `results.SCHEMA`), their events by kind, and their provenance."""

    rows: pl.DataFrame
    provenance: Mapping[str, Any]
    events: Mapping[str, pl.DataFrame] = field(default_factory=dict)

    def event(self, kind: str) -> pl.DataFrame:
        """Return the events of one kind. Raises RunError where the experiment kept none."""
        if kind not in self.events:
            raise RunError(f"the saved rows have no {kind!r} events; add it to `events` of the experiment")
        return self.events[kind]


def read(folder: Path, names: Sequence[str]) -> Saved:
    """Return the saved rows of these experiments together; the provenance is that of the first. Raises RunError."""
    parts = [_read(folder, name) for name in names]
    kinds = dict.fromkeys(kind for part in parts for kind in part.events)
    events = {kind: pl.concat([p.events[kind] for p in parts if kind in p.events], how="diagonal") for kind in kinds}
    return Saved(pl.concat([part.rows for part in parts]), parts[0].provenance, events)


def are_there(folder: Path, names: Sequence[str]) -> bool:
    """Return whether all of these experiments have been measured, well or not."""
    return all((folder / f"{name}.csv").exists() for name in names)


def write(folder: Path, name: str, saved: Saved, metrics: Iterable[str]) -> None:
    """Write NAME.csv with the rows of these metrics, NAME.KIND.csv and NAME.json; earlier files are replaced."""
    make_folder(folder)
    for old in folder.glob(f"{name}.*"):
        old.unlink()
    rows = saved.rows.filter(pl.col("metric").is_in(list(metrics))).with_columns(_text("value"))
    _csv(rows.select(column for column in rows if column.null_count() < rows.height), folder / f"{name}.csv")
    for kind, frame in saved.events.items():
        _csv(frame, folder / f"{name}.{kind}.csv")
    _write_facts(folder, name, saved.provenance)


def sign(folder: Path, name: str, code: Mapping[str, str], confirmed: Mapping[str, Any]) -> None:
    """Note that code of this fingerprint gave a sample of the saved rows again, as `confirmed` tells."""
    _write_facts(folder, name, {**read(folder, [name]).provenance, "code": code, "confirmed": confirmed})


def short(value: float) -> str:
    """Return a number as it is saved: whole ones as they are, others with `DIGITS` significant digits."""
    return str(int(value)) if value == int(value) else f"{value:.{DIGITS}g}"


def measure(experiment: Path, store: Path, *, progress: bool = True) -> Saved:
    """Run the missing cells of an experiment file in this row store, or its script; return rows and events.

    The provenance holds the fingerprint of the code. What was changed while it was measured has an empty hash there,
    which no code has. Raises KvlabError.
    """
    before = relevant_code(experiment)
    script = Script.of(experiment)
    saved = _of_script(script) if script else _swept(experiment, store, progress=progress)
    after = relevant_code(experiment)
    code = before | dict.fromkeys(changed(before, after), "")
    return replace(saved, provenance={**saved.provenance, "code": code})


def _swept(experiment: Path, store: Path, *, progress: bool) -> Saved:
    asked = read_experiment(experiment)
    results: Results = sweep(asked, store, progress=progress)
    kept = RowStore(store)
    found = [done for cell in asked.cells() if (done := kept.read(cell)) is not None]
    events = {}
    for kind in asked.events:
        frames = [
            pl.DataFrame(done.events[kind]).with_columns(
                pl.lit(done.cell.run.seed).alias("seed"), pl.lit(done.cell.repeat).alias("repeat")
            )
            for done in found
            if any(done.events[kind].values())
        ]
        events[kind] = pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()
    return Saved(results.frame(), results.provenance, events)


def _of_script(script: Script) -> Saved:
    document = script.run()
    rows = [{key: value for key, value in row.items() if key in SCHEMA} for row in document["rows"]]
    return Saved(pl.DataFrame(rows, schema=dict(SCHEMA)), document["provenance"])


def _read(folder: Path, name: str) -> Saved:
    try:
        found = pl.read_csv(folder / f"{name}.csv", schema_overrides=dict(SCHEMA))
        missing = [pl.lit(None, kind).alias(column) for column, kind in SCHEMA.items() if column not in found.columns]
        provenance = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        events = {
            path.name.split(".")[1]: pl.read_csv(path, schema_overrides={"policy": pl.String})
            for path in sorted(folder.glob(f"{name}.*.csv"))
        }
        return Saved(found.with_columns(missing).select(list(SCHEMA)), provenance, events)
    except FileNotFoundError as error:
        raise RunError(f"no saved rows of {name} in {folder}; make them with: kvlab figures --rerun") from error
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        line = " ".join(str(error).split())[:160]
        raise RunError(
            f"the saved rows of {name} in {folder} cannot be read ({line}); kvlab figures --rerun"
        ) from error


def _csv(frame: pl.DataFrame, path: Path) -> None:
    path.write_text(frame.write_csv() if frame.width else "", encoding="utf-8")


def _write_facts(folder: Path, name: str, provenance: Mapping[str, Any]) -> None:
    facts = {key: provenance[key] for key in FACTS if key in provenance}
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _text(column: str) -> pl.Expr:
    return pl.col(column).map_elements(short, return_dtype=pl.String)
