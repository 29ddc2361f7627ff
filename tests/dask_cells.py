"""Cells that cost nothing, for tests of what carries them to workers and back."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvlab.errors import RunError
from kvlab.experiments.cell import Cell, CellResult
from kvlab.experiments.run import Run
from kvlab.results import row

CELL_S = 0.05
"""Seconds of a cell, so that a worker can be killed in the middle of one."""


def cells(count: int) -> list[Cell]:
    return [Cell(Run("paged", "chat", turns=1, seed=seed)) for seed in range(count)]


def cheap(group: Sequence[Cell]) -> list[CellResult]:
    """Rows that follow from the cell alone, after a while."""
    time.sleep(CELL_S)
    return [result(cell) for cell in group]


def result(cell: Cell) -> CellResult:
    value = int(cell.id, 16) % 1000
    rows = [row(str(cell.run.policy), "chat", "cached_tokens", value, seed=cell.run.seed, repeat=cell.repeat)]
    return CellResult(cell, rows, {"commit": "one"}, {})


def refusing(group: Sequence[Cell]) -> list[CellResult]:
    raise RunError(f"cell {group[0].run.seed} is impossible")


def broken(group: Sequence[Cell]) -> list[CellResult]:
    raise ZeroDivisionError("a fault of the program")
