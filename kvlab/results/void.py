"""Void accuracy: where `full` itself fails a task, its grades say nothing about policies, and are not shown as if."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from kvlab.results.rows import Row

REFERENCE_POLICY = "full"
MIN_REFERENCE_ACCURACY = 0.5
"""Accuracy of `full` below which it fails a task: it has more wrong than right."""
TASK = ("workload", "model", "tokens", "kind")
"""Columns that tell tasks apart: the same questions of one kind, to one model."""

Task = tuple[Any, ...]


def mark_void(rows: Sequence[Row], reference: Sequence[Row] | None = None) -> list[Row]:
    """Return the rows, those of `accuracy` with the column `void` where `full` fails their task.

    A task is one kind of question of a workload, to one model at one length. `full` fails it with a mean accuracy below
    MIN_REFERENCE_ACCURACY: what a policy loses cannot be told from what the model cannot do. The value stays in the
    row, and `void` says how much `full` has right. `reference` are rows of `full`, by default those among `rows`;
    tasks that it was not given are not marked.
    """
    failed = _failed_tasks(rows if reference is None else reference)
    return [
        {**row, "void": failed[_task(row)]} if row["metric"] == "accuracy" and _task(row) in failed else row
        for row in rows
    ]


def _failed_tasks(rows: Sequence[Row]) -> dict[Task, str]:
    grades: dict[Task, list[float]] = {}
    for row in rows:
        if row["metric"] == "accuracy" and row["policy"] == REFERENCE_POLICY:
            grades.setdefault(_task(row), []).append(row["value"])
    means = {task: sum(values) / len(values) for task, values in grades.items()}
    return {task: f"full has {mean:.2f}" for task, mean in means.items() if mean < MIN_REFERENCE_ACCURACY}


def _task(row: Mapping[str, Any]) -> Task:
    return tuple(row.get(name) for name in TASK)


def valid(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows without those whose accuracy is void."""
    return rows.filter(pl.col("void").is_null()) if "void" in rows.columns else rows


def void_note(rows: pl.DataFrame) -> str:
    """Return a sentence that names the tasks whose accuracy is void, and why; empty where there is none."""
    if "void" not in rows.columns:
        return ""
    void = rows.filter(pl.col("void").is_not_null()).unique(list(TASK), maintain_order=True)
    if void.is_empty():
        return ""
    named = [name for name in TASK if name == "workload" or void[name].n_unique() > 1]
    named += ["kind"] if "kind" not in named else []
    tasks = [
        f"{' '.join(str(one[name]) for name in named if one[name] is not None)} ({one['void']})"
        for one in void.iter_rows(named=True)
    ]
    return f"Accuracy is void where full itself has fewer than half right: {', '.join(tasks)}."
