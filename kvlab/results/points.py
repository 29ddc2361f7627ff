"""The points of a sweep: rows that can be compared with each other, of one workload, model and setting."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

AXES = ("workload", "model", "n", "tokens")
MAX_POINTS = 12
"""Points that a page shows one by one; the rows have all."""


@dataclass(frozen=True)
class Point:
    """Rows of one point, named by what differs from the other points; without a name where there is only one."""

    name: str
    rows: pl.DataFrame


def points_of(frame: pl.DataFrame) -> list[Point]:
    """Split the rows by workload, model, concurrency and length of prompts, in their order."""
    varied = [axis for axis in AXES if frame[axis].drop_nulls().n_unique() > 1]
    if not varied:
        return [Point("", frame)]
    return [
        Point(", ".join(f"{axis} {part[axis][0]}" for axis in varied if part[axis][0] is not None), part)
        for part in frame.partition_by(varied, maintain_order=True)[:MAX_POINTS]
    ]
