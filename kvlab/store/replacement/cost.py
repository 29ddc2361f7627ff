"""Least recompute time saved per byte leaves first.

GreedyDual (Young 1994; Cao & Irani, USENIX ITS 1997) on the seconds that recomputing a block takes: a block deep in a
long context costs more than one near its start, because attention looks back over everything before it.
"""

from __future__ import annotations

from kvlab.store.replacement.gdsf import Gdsf


class CostAware(Gdsf):
    """Weighs keys by ``cost / size``, in the place of GDSF's 1 / size: recompute time saved by one use, per byte."""

    name = "cost"

    def worth(self, size: int, cost: float) -> float:
        return cost / max(size, 1)
