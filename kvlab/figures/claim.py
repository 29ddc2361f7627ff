"""The claims of figures as data: a value or a ratio of two, its bound, and the tolerance for other machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from kvlab.errors import RunError


@dataclass(frozen=True)
class Pick:
    """The rows of one metric that have these values in these columns, as one number: their mean, sum, or count.

    A tuple of values stands for any of them.
    """

    metric: str
    where: Mapping[str, Any] = field(default_factory=dict)
    statistic: Literal["mean", "sum", "count"] = "mean"

    def value(self, rows: pl.DataFrame) -> float:
        """Return the number. Raises RunError where no row is picked, or a column does not exist."""
        if unknown := set(self.where) - set(rows.columns):
            raise RunError(f"the rows have no column {min(unknown)!r}")
        asked = (pl.col(key).is_in(v if isinstance(v, tuple) else (v,)) for key, v in self.where.items())
        found = rows.filter(pl.col("metric") == self.metric, *asked)
        if found.is_empty():
            raise RunError(f"no rows of {self}")
        return float(getattr(found["value"], self.statistic)())

    def __str__(self) -> str:
        return " ".join([self.metric, *(f"{key}={value}" for key, value in self.where.items())])


def pick(metric: str, statistic: Literal["mean", "sum", "count"] = "mean", **where: Any) -> Pick:
    """Pick the rows of a metric: `pick("ttft_ms", policy="full", turn=15)`."""
    return Pick(metric, where, statistic)


@dataclass(frozen=True)
class Claim:
    """One sentence of a figure with its bound.

    Args:
        text: the sentence.
        of: the picked rows.
        to: the rows to divide by; None for the value itself.
        at_most, at_least: the bound, of a ratio in times, else in the metric's unit. One of them, or both.
        tolerance: how far beyond the bound a fresh run may be, as a share of the bound, before it contradicts.
    """

    text: str
    of: Pick
    to: Pick | None = None
    at_most: float | None = None
    at_least: float | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.at_most is None and self.at_least is None:
            raise RunError(f"the claim {self.text!r} has no bound; write at_most or at_least")

    def judge(self, rows: pl.DataFrame, *, fresh: bool = False) -> Verdict:
        """Compare with the rows: saved rows by the bound itself, a fresh run by the bound and its tolerance.

        Raises RunError where no row is picked.
        """
        value = self.of.value(rows)
        if self.to is not None:
            base = self.to.value(rows)
            if base == 0:
                raise RunError(f"{self.to} is 0 and cannot be divided by")
            value /= base
        slack = self.tolerance if fresh else 0.0
        low = None if self.at_least is None else self.at_least * (1 - slack)
        high = None if self.at_most is None else self.at_most * (1 + slack)
        return Verdict(self, value, (low is None or value >= low) and (high is None or value <= high))

    @property
    def unit(self) -> str:
        from kvlab.results import units

        return "x" if self.to is not None else units()[self.of.metric]

    @property
    def metrics(self) -> set[str]:
        return {self.of.metric, *([self.to.metric] if self.to else [])}


@dataclass(frozen=True)
class Verdict:
    """A claim, its measured value, and whether it holds."""

    claim: Claim
    value: float
    holds: bool

    def __str__(self) -> str:
        bounds = [
            f"{word} {bound:g}{'x' if self.claim.to else ''}"
            for word, bound in (("at least", self.claim.at_least), ("at most", self.claim.at_most))
            if bound is not None
        ]
        slack = f", tolerance {self.claim.tolerance:.0%}" if self.claim.tolerance else ""
        measured = f"{self.value:.3g}x" if self.claim.to else f"{self.value:.4g}"
        return f"{self.claim.text}: measured {measured} ({' and '.join(bounds)}{slack})"
