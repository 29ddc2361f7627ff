"""Measures: what is compared, as picks of rows, so that every number can be looked up again by its filter."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from kvlab.figures.stack_page.designs import NO_CACHE, Design
from kvlab.figures.stack_page.stack_rows import Row, StackRows

Statistic = Literal["mean", "max", "sum", "p95"]
_STATISTICS: Mapping[Statistic, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "max": max,
    "sum": math.fsum,
    "p95": lambda values: float(np.percentile(values, 95)),
}


@dataclass(frozen=True)
class Rows:
    """The rows of one metric of a workload that have these values in these columns, and how they become a number."""

    workload: str
    metric: str
    where: Mapping[str, Any] = field(default_factory=dict)
    statistic: Statistic = "mean"

    def of(self, rows: StackRows, candidate: str) -> list[Row]:
        """Return these rows of a candidate; a tuple of values stands for any of them."""
        wanted = {key: value if isinstance(value, tuple) else (value,) for key, value in self.where.items()}
        found = rows.of(candidate, self.workload, self.metric)
        return [row for row in found if all(row[key] in values for key, values in wanted.items())]

    def by_repeat(self, rows: StackRows, candidate: str) -> dict[tuple[Any, ...], float]:
        """Return the number of each seed and repeat; empty where there are no such rows."""
        values: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for row in self.of(rows, candidate):
            values[row["seed"], row["repeat"]].append(row["value"])
        return {key: _STATISTICS[self.statistic](found) for key, found in values.items()}

    def code(self, candidate: str) -> str:
        """Return what picks these rows, as Python for Polars."""
        one = {key: value for key, value in self.where.items() if not isinstance(value, tuple)}
        given = {"policy": candidate, "workload": self.workload, "metric": self.metric, **one}
        some = [
            f'pl.col("{key}").is_in({list(value)})' for key, value in self.where.items() if isinstance(value, tuple)
        ]
        return f"rows.filter({', '.join([*some, *(f'{key}={_literal(value)}' for key, value in given.items())])})"


@dataclass(frozen=True)
class Sample:
    """What was measured of one design: a number for each repeat, and how many rows they were made of."""

    candidate: str
    values: tuple[float, ...]
    n_rows: int
    code: tuple[str, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Measure:
    """One row of the table, or of what the claims need.

    Args:
        key: for claims.
        title: its heading, which links find.
        tells: one sentence: what is measured.
        better: which numbers come first; empty where none is better.
        of: the rows.
        to: the rows to divide by.
        over_no_cache: the rows to divide by are those of no cache.
        per: this number divided by that of the rows, as in sequences in a GB.
        scale: what the number is multiplied by before it is shown, such as 1e-6 for bytes as MB.
        shown: a format of the number, such as ``{:.2g}×``.
        without_store: the number of a design that keeps nothing at rest, and so has no such rows.
        crowd: how many agents ran at once, where that is what tells two measures apart.
        good_for: whom it serves to be first here.
        lever: what kvlab's `tiered` would need to be first, in one sentence; empty for what is no row of the table.
    """

    key: str
    title: str
    tells: str
    better: Literal["less", "more", ""]
    of: Rows
    to: Rows | None = None
    over_no_cache: bool = False
    per: float | None = None
    scale: float = 1.0
    without_store: float | None = None
    crowd: int | None = None
    shown: str = "{:,.0f}"
    good_for: str = ""
    lever: str = ""

    def sample(self, rows: StackRows, design: Design) -> Sample | None:
        """Return what the rows say of a design; None where they say nothing."""
        candidate = rows.candidate(design, self.of.workload)
        if candidate is None:
            return None
        found, code = self.of.by_repeat(rows, candidate), [self.of.code(candidate)]
        if not found and self.without_store is not None:
            return Sample(candidate, (self.without_store,), 0, tuple(code))
        if self.to is not None:
            whose = NO_CACHE if self.over_no_cache else candidate
            divisors = self.to.by_repeat(rows, whose)
            base = statistics.median(divisors.values()) if divisors else 0.0
            # What no cache needs for the same prompts; where it was not repeated as often, its median.
            by = {key: divisors.get(key, base if self.over_no_cache else 0.0) for key in found}
            found = {key: value / by[key] for key, value in found.items() if by[key]}
            code.append(self.to.code(whose))
        if self.per is not None:
            found = {key: self.per / value for key, value in found.items() if value}
        if not found:
            return None
        return Sample(candidate, tuple(found.values()), len(self.of.of(rows, candidate)), tuple(code))

    def text(self, value: float) -> str:
        """Return a number of this measure as people read it."""
        return self.shown.format(math.floor(value + 1e-9) if self.per is not None else value * self.scale)

    @property
    def metrics(self) -> set[str]:
        return {self.of.metric, *([self.to.metric] if self.to else [])}


def _literal(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
