"""Confirming saved rows: the code as it is gives a sample of them again, to the last saved digit; bytes nearly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from kvlab.counts import counted
from kvlab.experiments.cell import Cell
from kvlab.experiments.config import read_experiment
from kvlab.experiments.result_store import RowStore
from kvlab.experiments.sweep import finish
from kvlab.figures import saved as rows
from kvlab.figures.build import Place
from kvlab.figures.figure import Figure
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

    Rows that hold a time, that a script made, or of which any differs stay as they are: returns a line for each of
    those experiments. Raises KvlabError where there are no rows, or a cell fails.
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
        cells = read_experiment(path).cells()
        few = sample(cells)
        store = RowStore(stores / f"{name}-sample")
        finish(few, store, name, progress=progress)
        fresh = store.results(few)
        shutil.rmtree(store.folder, ignore_errors=True)
        if found := differences(kept.rows, fresh):
            more = f", and {len(found) - DIFFERENCES_SHOWN} more" if len(found) > DIFFERENCES_SHOWN else ""
            shown = "; ".join(found[:DIFFERENCES_SHOWN])
            problems.append(f"{name}: the code as it is gives other rows ({shown}{more}); kvlab figures --rerun")
            continue
        signed = {"commit": at, "time": _now(), "cells": len(few), "of": len(cells)}
        rows.sign(place.rows, name, now, signed)
        print(f"{name}: {counted(len(few), 'cell')} of {len(cells)} gave the saved rows again")
    return problems


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
    asked = fresh.frame().filter(pl.col("metric").is_in(kept["metric"].unique().to_list()))
    asked = asked.filter((pl.col("unit") != BYTES) | pl.col("turn").is_not_null())
    beside = asked.join(kept.select(*keys, "value"), on=keys, how="left", nulls_equal=True, suffix="_kept")
    found = []
    for row in beside.iter_rows(named=True):
        if row["value_kept"] is None or not _is_same(row["value"], row["value_kept"], row["unit"]):
            old = "no row" if row["value_kept"] is None else rows.short(row["value_kept"])
            where = f"{row['conversation'] or 'all'}, seed {row['seed']}"
            found.append(f"{row['metric']} of {row['policy']} ({where}): {old}, now {rows.short(row['value'])}")
    return found


def _is_same(value: float, kept: float, unit: str) -> bool:
    if unit == BYTES:
        return abs(value - kept) <= BYTES_TOLERANCE * abs(kept)
    return rows.short(value) == rows.short(kept)


def _only_anew(path: Path, kept: pl.DataFrame, differing: Sequence[str]) -> str:
    """Return why no sample can confirm these rows; empty where one can."""
    if Script.of(path):
        return "a script measures it"
    if path.name in differing:
        return "the experiment itself is another"
    if read_experiment(path).events:
        return "it keeps events"
    times = [metric for metric in kept["metric"].unique(maintain_order=True) if units().get(metric) in TIMES]
    return f"{times[0]} does not come out twice the same" if times else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
