"""``Finding``: one number or fact about a server's cache, and what it means for an agent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["good", "bad", "note", "unknown"]
"""``good``: as an agent needs it. ``bad``: it costs an agent time or a right answer. ``note``: a fact. ``unknown``: not
established, and ``detail`` says why."""


@dataclass(frozen=True)
class Finding:
    """One result of a probe.

    ``value`` is None where the result is no number. ``detail`` holds the numbers behind it, or the reason for
    ``unknown``. ``means`` is one sentence for the author of an agent; empty for a number that only supports others.
    """

    probe: str
    metric: str
    value: float | None
    unit: str
    verdict: Verdict
    detail: str = ""
    means: str = ""

    def row(self) -> dict[str, Any]:
        """Return the finding as a tidy row."""
        return {
            "probe": self.probe,
            "metric": self.metric,
            "value": self.value,
            "unit": self.unit,
            "verdict": self.verdict,
            "detail": self.detail,
            "means": self.means,
        }
