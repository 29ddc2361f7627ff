"""A number of a figure for the text of README and docs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import polars as pl

from kvlab.errors import RunError
from kvlab.figures.claim import Pick


@dataclass(frozen=True)
class Number:
    """A value of a figure's rows, or a ratio of two, as it is written in a sentence.

    Args:
        of: the picked rows.
        to: the rows to divide by; None for the value itself.
        scale: what it is multiplied by, such as 1e-6 for bytes as MB.
        digits: significant digits; whole numbers have all of theirs.
    """

    of: Pick
    to: Pick | None = None
    scale: float = 1.0
    digits: int = 2

    def value(self, rows: pl.DataFrame) -> float:
        """Return the number. Raises RunError where no row is picked, or the divisor is 0."""
        value = self.of.value(rows) * self.scale
        if self.to is None:
            return value
        base = self.to.value(rows)
        if base == 0:
            raise RunError(f"{self.to} is 0 and cannot be divided by")
        return value / base

    def text(self, rows: pl.DataFrame) -> str:
        """Return the number as text, without an exponent: `0.026`, `9.2`, `24`, `1,290`."""
        value = self.value(rows)
        if value == int(value):
            return f"{int(value):,}"
        places = max(0, self.digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{places}f}"

    @property
    def metrics(self) -> set[str]:
        return {self.of.metric, *([self.to.metric] if self.to else [])}
