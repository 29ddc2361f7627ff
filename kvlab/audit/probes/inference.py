"""How far cached tokens that are inferred from TTFT lie from those that the server reports."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from kvlab.audit.curve import CachedEstimate
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
        known = [(one, one.inferred) for one in pairs if one.inferred is not None]
        if not known:
            detail = "the server reports no cached tokens" if not lab.reports_cached else "no prompt was cached"
            yield Finding(self.name, "mean_difference", None, "ratio", "unknown", detail)
            return
        offs = [(one.reported or 0) - inferred.tokens for one, inferred in known]
        relative = [abs(off) / (one.reported or 1) for off, (one, _) in zip(offs, known, strict=True)]
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

    def _is_false(self, known: Sequence[tuple[Observation, CachedEstimate]]) -> bool:
        """Whether most claims lie far above what their TTFT stands for."""
        false = 0
        for one, inferred in known:
            claimed = one.reported or 0
            off = claimed - inferred.tokens
            false += off > FAR * claimed and off > SURE_ERRORS * inferred.error
        return false > len(known) / 2
