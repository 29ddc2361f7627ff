"""What an audit does when a probe has ended the server: says so, has it restarted where it can, or ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvlab.audit.alive import alive_finding, why_silent
from kvlab.audit.finding import Finding
from kvlab.audit.probe import Lab, Probe
from kvlab.audit.shell import run_and_wait

GONE = "not run: the server is gone since the probe"
STILL_AWAY = "The server does not come back by the command for a restart."


def survival_findings(probe: Probe, later: Sequence[Probe], found: Sequence[Finding], lab: Lab) -> Iterator[Finding]:
    """Yield nothing where the server answers after ``probe``, or that it answers a second question.

    Else yield that it is gone (unless ``found`` says so), and how it came back by the user's command; without one, or
    where that fails, a finding for each of the ``later`` probes, which cannot run.
    """
    if not why_silent(lab):
        return
    if not any(finding.metric == "alive" and finding.verdict == "bad" for finding in found):
        again = alive_finding(probe.name, lab)
        yield again
        if again.verdict == "good":  # it was only slow
            return
    if lab.restart:
        back = run_and_wait(lab, lab.restart)
        if not back.error:
            yield Finding(probe.name, "restarted_s", back.seconds, "s", "note", "the audit goes on after --restart")
            return
        yield Finding(probe.name, "restarted_s", None, "s", "bad", back.error, STILL_AWAY)
    for other in later:
        yield Finding(other.name, "ran", None, "", "unknown", f"{GONE} {probe.name}")


def is_over(findings: Sequence[Finding]) -> bool:
    """Return whether these findings end with probes that could not run any more."""
    return findings[-1].detail.startswith(GONE)
