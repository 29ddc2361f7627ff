"""How many cores a step's products run on."""

from __future__ import annotations

import statistics
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from kvlab.backends.x86 import blas_library
from kvlab.backends.x86.sgemm import SINGLE_THREADED

SMALL = 1_500_000
"""Multiplications up to which a product is as quick on one core: asking a second takes as long."""


class BlasThreads:
    """Sets the number of BLAS threads, for a model on a CPU; it is one for the whole process."""

    def __init__(self, model: nn.Module) -> None:
        leaves: Any = tree_flatten(model.parameters())
        self._per_row = statistics.mean([array.size for _, array in leaves if array.ndim == 2] or [0])
        self._all = self._in_use = blas_library.prepare().threads

    def suit(self, rows: int, *, beside: bool = False) -> None:
        """Choose for a forward pass of so many rows, which has the cores for itself or runs ``beside`` another."""
        self._use(1 if rows * self._per_row < SMALL else max(1, self._all // 2) if beside else self._all)

    def give_back(self) -> None:
        """Leave the number as it was found: others in this process compute meanwhile."""
        self._use(self._all)

    def _use(self, count: int) -> None:
        if count != self._in_use:
            self._in_use = count
            SINGLE_THREADED.then(count)
