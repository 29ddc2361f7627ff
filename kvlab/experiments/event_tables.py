"""Events as small tables that a text file can hold."""

from __future__ import annotations

from typing import Any

import polars as pl

from kvlab.results import Results

Table = dict[str, list[Any]]
"""Columns of equal length, by name."""


def event_table(results: Results, kind: str) -> Table:
    """Return the events of one kind, ``t`` in seconds since the first request; ``evicted`` as runs of positions."""
    frame, submitted = results.events(kind), results.events("submitted")
    frame = frame.drop("workload", "positions", strict=False)
    if kind == "evicted":
        return position_runs(frame).to_dict(as_series=False)
    start: Any = submitted["t"].min()
    return frame.with_columns((pl.col("t") - (start or 0.0)).round(6)).to_dict(as_series=False)


def position_runs(evicted: pl.DataFrame) -> pl.DataFrame:
    """Group neighbouring positions that left a head at the same step, as half-open runs ``start``, ``stop``."""
    keys = ["policy", "request", "layer", "head", "step"]
    ordered = evicted.select(*keys, "position").unique().sort(*keys, "position")
    run = (pl.col("position") - pl.int_range(pl.len()).over(keys)).alias("run")
    groups = ordered.with_columns(run).group_by(*keys, "run", maintain_order=True)
    return groups.agg(pl.col("position").min().alias("start"), (pl.col("position").max() + 1).alias("stop")).drop("run")


def positions(runs: pl.DataFrame) -> pl.DataFrame:
    """Expand the output of `position_runs`: one row a position, as `Results.events("evicted")` has them."""
    each = pl.int_ranges("start", "stop").alias("position")
    return runs.with_columns(each).explode("position").drop("start", "stop")
