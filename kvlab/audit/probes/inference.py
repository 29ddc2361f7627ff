"""How far cached tokens that are inferred from TTFT lie from those that the server reports."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from kvlab.audit.finding import Finding
from kvlab.audit.probe import Lab, Observation, Probe
from kvlab.counts import counted

MIN_CACHED_SHARE = 0.1
"""Of a prompt, reported as cached: below it, a difference says nothing relative to it."""

CLOSE, FAR = 0.1, 0.5
SURE_ERRORS = 3.0
"""In standard errors: a claim that lies this far above what the TTFT stands for is not the clock's noise."""


class InferenceError(Probe):
    """Compares both numbers over all requests of the probes before; none of its own are sent."""

    name, about, order = "inference", "cached tokens by TTFT, beside those reported", 95

    def run(self, lab: Lab) -> Iterator[Finding]:
        pairs = [one for one in lab.observations if one.reported and one.reported >= MIN_CACHED_SHARE * one.size]
        known = [(share, one) for one in pairs if (share := one.saved_share) is not None]
        if not known:
            detail = "the server reports no cached tokens" if not lab.reports_cached else "no prompt was cached"
            yield Finding(self.name, "mean_difference", None, "ratio", "unknown", detail)
            return
        relative = [abs(1 - share) for share, _ in known]
        mean = statistics.fmean(relative)
        detail = (
            f"mean over {counted(len(known), 'cached prompt')}; median {statistics.median(relative):.1%}, "
            f"largest {max(relative):.1%}"
        )
        if self._is_false(known):
            means = "The server claims cached tokens that its time to first token does not bear out."
            yield Finding(self.name, "mean_difference", mean, "ratio", "bad", detail, means)
        elif mean <= CLOSE:
            means = "The time to first token falls as the reported cached tokens say."
            yield Finding(self.name, "mean_difference", mean, "ratio", "good", detail, means)
        else:
            means = "TTFT on this machine is too uneven, or a cached prompt costs too much besides, to infer from it."
            yield Finding(self.name, "mean_difference", mean, "ratio", "note", detail, means)

    def _is_false(self, known: Sequence[tuple[float, Observation]]) -> bool:
        """Whether most claims lie far above what their TTFT stands for."""
        false = 0
        for share, one in known:
            error = one.inferred.error / (one.reported or 1) if one.inferred is not None else 0.0
            false += 1 - share > max(FAR, SURE_ERRORS * error)
        return false > len(known) / 2
