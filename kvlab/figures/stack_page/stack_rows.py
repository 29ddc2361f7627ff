"""The saved rows, in the order in which they are asked for: by candidate, part and metric, and candidates by design."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import polars as pl

from kvlab.figures.stack_page.designs import Design, asked_for, design_of

STACK, STACK_SMOLLM2 = "stack", "stack_smollm2"
"""The names of the experiments: of the bundled model, and of SmolLM2-135M with fewer conversations and agents."""
STACKS = (STACK, STACK_SMOLLM2)

Row = Mapping[str, Any]


class StackRows:
    """Rows of the stack (columns of `results.SCHEMA`), read once. ``experiment`` is the name of their file."""

    def __init__(self, frame: pl.DataFrame, experiment: str = STACK) -> None:
        self.frame = frame
        self.experiment = experiment

    def of(self, candidate: str, workload: str, metric: str) -> list[Row]:
        """Return the rows of a candidate, in their order; empty where there are none."""
        return self._by_metric.get((candidate, workload, metric), [])

    def candidate(self, design: Design, workload: str) -> str | None:
        """Return the text of a design in a part; of several, which differ by their options, the shortest."""
        return self._candidates.get((design, workload))

    @cached_property
    def missing(self) -> list[Design]:
        """The designs that were asked for and have no row."""
        there = {design for design, _ in self._candidates}
        return [design for design in asked_for() if design not in there]

    @cached_property
    def _by_metric(self) -> dict[tuple[str, str, str], list[Row]]:
        found: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
        for row in self.frame.iter_rows(named=True):
            found[row["policy"], row["workload"], row["metric"]].append(row)
        return dict(found)

    @cached_property
    def _candidates(self) -> dict[tuple[Design, str], str]:
        found: dict[tuple[Design, str], str] = {}
        pairs = sorted({(policy, workload) for policy, workload, _ in self._by_metric})
        for candidate, workload in sorted(pairs, key=lambda pair: len(pair[0])):
            found.setdefault((design_of(candidate), workload), candidate)
        return found
