"""Confirming saved rows: the code as it is gives a sample of them again, to the last saved digit; bytes nearly."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from kvlab.experiments.cell import Cell
from kvlab.experiments.config import read_experiment
from kvlab.experiments.result_store import RowStore
from kvlab.experiments.sweep import finish
from kvlab.figures import saved as rows
from kvlab.figures.build import Place
from kvlab.figures.figure import Figure, confirmed_part
from kvlab.figures.relevant_code import changed, relevant_code
from kvlab.figures.script import Script
from kvlab.policies import Policy
from kvlab.provenance import commit
from kvlab.results import SCHEMA, Results
from kvlab.results.rows import units

TIMES = frozenset({"ms", "tokens/s", "bytes/s"})
"""Units of what no second run gives again."""
BYTES, BYTES_TOLERANCE = "bytes", 0.1
"""Storage grows in steps, and which sequences run side by side is a matter of time: bytes may differ by this share."""
DIFFERENCES_SHOWN = 2
"""Most differing rows in one line."""


def confirm(figures: Sequence[Figure], place: Place, stores: Path, *, progress: bool = True) -> list[str]:
    """Run a sample of the cells of each stale experiment, and sign its rows with the code as it is where all agree.

    A script that names a ``sample`` measures that. Rows that hold a time, that a script without a sample made, or of
    which any differs stay as they are: returns a line for each of those experiments. Raises KvlabError where there are
    no rows, or a cell fails.
    """
    problems, at = [], commit()
    for name in dict.fromkeys(name for figure in figures for name in figure.experiments):
        path = place.experiments / f"{name}.toml"
        kept, now = rows.read(place.rows, [name]), relevant_code(path)
        before = kept.provenance.get("code") or {}
        if before == now:
            continue
        if why := _only_anew(path, kept.rows, changed(before, now)):
            problems.append(f"{name}: {why}; measure it anew: kvlab figures --rerun")
            continue
        fresh, count = _again(path, stores / f"{name}-sample", kept.rows, progress=progress)
        if found := differences(kept.rows, fresh):
            more = f", and {len(found) - DIFFERENCES_SHOWN} more" if len(found) > DIFFERENCES_SHOWN else ""
            shown = "; ".join(found[:DIFFERENCES_SHOWN])
            why = _other_machine(kept.provenance, fresh.provenance)
            problems.append(f"{name}: the code as it is gives other rows ({shown}{more}){why}; kvlab figures --rerun")
            continue
        rows.sign(place.rows, name, now, {"commit": at, "time": _now(), **count})
        print(f"{name}: {confirmed_part(count)} gave the saved rows again")
    return problems


def _again(path: Path, folder: Path, kept: pl.DataFrame, *, progress: bool) -> tuple[Results, dict[str, int]]:
    """Measure a sample of an experiment again; return its rows and how many of how many cells, or rows, they are."""
    if script := Script.of(path):
        document = script.run(*script.sample)
        fresh = Results(document["rows"], document["provenance"])
        return fresh, {"rows": _compared(kept, fresh).height, "of": kept.height}
    cells = read_experiment(path).cells()
    few = sample(cells)
    store = RowStore(folder)
    finish(few, store, path.stem, progress=progress)
    fresh = store.results(few)
    shutil.rmtree(folder, ignore_errors=True)
    return fresh, {"cells": len(few), "of": len(cells)}


def _other_machine(kept: Mapping[str, Any], fresh: Mapping[str, Any]) -> str:
    """Say where rows were computed on another device, or by other BLAS kernels, which round otherwise; else empty."""
    for fact in ("device", "blas"):
        if kept.get(fact) and kept.get(fact) != fresh.get(fact):
            return f", but the saved ones come from {kept[fact]}, and these from {fresh.get(fact)}, which may be why"
    return ""


def sample(cells: Sequence[Cell]) -> list[Cell]:
    """Return one cell for each workload and combination of policy modules; the seeds in turn."""
    by_kind: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        policy = Policy.parse(cell.policy)
        parts = (policy.retention, policy.codec, policy.reuse, policy.tiers)
        kind = (str(cell.run.workload), *(part.name if part is not None else "" for part in parts))
        by_kind.setdefault(kind, []).append(cell)
    chosen = []
    for turn, alike in enumerate(by_kind.values()):
        seeds = list(dict.fromkeys(cell.run.seed for cell in alike))
        chosen.append(next(cell for cell in alike if cell.run.seed == seeds[turn % len(seeds)]))
    return chosen


def differences(kept: pl.DataFrame, fresh: Results) -> list[str]:
    """Return a line for each fresh row of the kept metrics whose value is not that of the same kept row.

    Bytes of all sequences together are left out: how many ran at a time is a matter of time.
    """
    keys = [column for column in SCHEMA if column not in ("value", "unit", "void")]
    beside = _compared(kept, fresh).join(
        kept.select(*keys, "value"), on=keys, how="left", nulls_equal=True, suffix="_kept"
    )
    found = []
    for row in beside.iter_rows(named=True):
        if row["value_kept"] is None or not _is_same(row["value"], row["value_kept"], row["unit"]):
            old = "no row" if row["value_kept"] is None else rows.short(row["value_kept"])
            where = f"{row['conversation'] or 'all'}, seed {row['seed']}"
            found.append(f"{row['metric']} of {row['policy']} ({where}): {old}, now {rows.short(row['value'])}")
    return found


def _compared(kept: pl.DataFrame, fresh: Results) -> pl.DataFrame:
    """Return the fresh rows that must be among the kept ones, which may hold some kinds of rows only."""
    kinds = kept.select("policy", "metric", "kind").unique()
    asked = fresh.frame().join(kinds, on=kinds.columns, how="semi", nulls_equal=True)
    return asked.filter((pl.col("unit") != BYTES) | pl.col("turn").is_not_null())


def _is_same(value: float, kept: float, unit: str) -> bool:
    if unit == BYTES:
        return abs(value - kept) <= BYTES_TOLERANCE * abs(kept)
    return rows.short(value) == rows.short(kept)


def _only_anew(path: Path, kept: pl.DataFrame, differing: Sequence[str]) -> str:
    """Return why no sample can confirm these rows; empty where one can."""
    if (script := Script.of(path)) and not script.sample:
        return "a script measures it, and names no sample"
    if path.name in differing:
        return "the experiment itself is another"
    if not script and read_experiment(path).events:
        return "it keeps events"
    times = [metric for metric in kept["metric"].unique(maintain_order=True) if units().get(metric) in TIMES]
    return f"{times[0]} does not come out twice the same" if times else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
