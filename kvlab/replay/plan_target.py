"""``PlanTarget``: what the tiers of a plan must reach."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from kvlab.replay.errors import TraceError
from kvlab.replay.tiered_counts import TieredCounts
from kvlab.speed import Speed

OF_INFINITE = "of_infinite"
DEFAULT_TARGET = "95%"


@dataclass(frozen=True)
class PlanTarget:
    """Holds a bound of one metric.

    Attributes:
        text: what the user wrote, such as ``95%`` or ``ttft_p95=2s``.
        metric: ``of_infinite``, the cached tokens over those that tiers without limit would have; or ``ttft_p95_ms``,
            the wait for the first token that 95 % of the requests do not exceed, of any percentile.
        bound: the least share, or the longest wait in ms.
    """

    text: str
    metric: str
    bound: float

    @property
    def is_wait(self) -> bool:
        """Whether it bounds a wait, which a speed is needed for."""
        return self.metric != OF_INFINITE

    def value(self, counts: TieredCounts, speed: Speed | None, token_bytes: int) -> float:
        """Return what a replay has of the metric."""
        if not self.is_wait or speed is None:
            return counts.of_infinite
        percent = int(self.metric.removeprefix("ttft_p").removesuffix("_ms"))
        return 1e3 * float(np.percentile(counts.ttft_s(speed, token_bytes), percent))

    def is_reached(self, value: float) -> bool:
        """Tell whether a value is within the bound."""
        return value <= self.bound if self.is_wait else value >= self.bound

    def shown(self, value: float) -> str:
        """Return a value of the metric as text."""
        if self.is_wait:
            return f"{value:,.0f} ms at the {self.metric.removeprefix('ttft_p').removesuffix('_ms')}th percentile"
        return f"{100 * value:.2f} % of what tiers without limit hit"


def read_target(text: str) -> PlanTarget:
    """Read a target. Raises ``TraceError`` that says what to write."""
    words = text.replace(" ", "")
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)%", words):
        share = float(found[1]) / 100
        if 0 < share <= 1:
            return PlanTarget(text, OF_INFINITE, share)
    if found := re.fullmatch(r"(?:ttft_?)?p(\d\d?)=(\d+(?:\.\d+)?)(ms|s)", words):
        wait = float(found[2]) * (1 if found[3] == "ms" else 1e3)
        if wait and int(found[1]):
            return PlanTarget(text, f"ttft_p{int(found[1])}_ms", wait)
    raise TraceError(
        f"cannot plan for '{text}': write 95% of what a cache without limit would hit, or a wait such as ttft_p95=2s"
    )
