"""``BlasThreads``: on how many cores the products of a step run."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from kvlab.backends.x86 import blas_library
from kvlab.backends.x86.sgemm import SINGLE_THREADED

MIN_MULTIPLICATIONS_FOR_ALL_CORES = 2_500_000
"""Fewest multiplications of a product that is faster on several cores than on one. Check a change with ``kvlab bench
decode`` and ``kvlab bench pace``."""


class BlasThreads:
    """Sets the number of BLAS threads, for a model on a CPU; it is one for the whole process."""

    def __init__(self, model: nn.Module) -> None:
        named: Any = tree_flatten(model.parameters())
        sizes = [array.size for _, array in named if array.ndim == 2]
        # Weighted by work: most of a small model's time may go into few large products, such as its head.
        self._multiplications_per_row = sum(size * size for size in sizes) / max(1, sum(sizes))
        self._all = self._in_use = blas_library.prepare().threads

    def choose(self, rows: int, *, beside: bool = False) -> None:
        """Set the number for a forward pass of ``rows`` rows, which has all cores or shares them with another."""
        is_small = rows * self._multiplications_per_row < MIN_MULTIPLICATIONS_FOR_ALL_CORES
        self._use(1 if is_small else max(1, self._all // 2) if beside else self._all)

    def restore(self) -> None:
        """Reset the number to its first value, for other work in this process."""
        self._use(self._all)

    def _use(self, count: int) -> None:
        if count != self._in_use:
            self._in_use = count
            SINGLE_THREADED.set_threads(count)
