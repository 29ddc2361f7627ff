"""The same prompt twice."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Probe

REPEATED = Sentences(
    good="An agent that sends a prompt again, as after a lost connection, waits only for the last tokens.",
    part="An agent that sends a prompt again pays for a part of it a second time.",
    bad="An agent that sends a prompt again pays for all of it a second time.",
)


class Repeat(Probe):
    """Sends one prompt twice: a cache that works at all has the second one, but for its last token."""

    name, about, order = "repeat", "the same prompt twice", 10

    def run(self, lab: Lab) -> Iterator[Finding]:
        messages = [system(lab.text("repeat/system", 0.75)), user(lab.text("repeat/user", 0.25))]
        cold = lab.observe(messages)
        warm = lab.observe(messages)
        yield from judge(self.name, lab, warm, warm.shared_with(cold), REPEATED)
