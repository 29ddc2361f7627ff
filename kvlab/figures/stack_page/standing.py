"""Who is first, and who is tied with the first: designs whose measured ranges touch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kvlab.figures.stack_page.designs import KVLAB, Design, asked_for
from kvlab.figures.stack_page.measures import Measure, Sample
from kvlab.figures.stack_page.stack_rows import StackRows


@dataclass(frozen=True)
class DesignOrder:
    """One row of the table: the samples of its designs; those without rows are not in it."""

    measure: Measure
    samples: Mapping[Design, Sample]

    @classmethod
    def of(cls, measure: Measure, rows: StackRows, designs: Sequence[Design] | None = None) -> DesignOrder:
        """Measure these designs, or all that the table asks for."""
        found = {design: measure.sample(rows, design) for design in designs or asked_for()}
        return cls(measure, {design: sample for design, sample in found.items() if sample is not None})

    @cached_property
    def order(self) -> list[Design]:
        """The designs, the best median first; in the table's order where none is better."""
        sign = {"less": 1.0, "more": -1.0, "": 0.0}[self.measure.better]
        return sorted(self.samples, key=lambda design: sign * self.samples[design].median)

    @cached_property
    def first(self) -> list[Design]:
        """The best design and all that are tied with it, in the table's order; none where all are alike."""
        if not self.measure.better or not self.samples:
            return []
        best = self.samples[self.order[0]]
        return [design for design, sample in self.samples.items() if touch(sample, best)]

    @property
    def all_alike(self) -> bool:
        return len(self.first) == len(self.samples)

    @property
    def kvlab_is_first(self) -> bool:
        return Design(KVLAB) in self.first


def touch(one: Sample, other: Sample) -> bool:
    """Return whether the measured ranges have a number in common."""
    return one.low <= other.high and other.low <= one.high
