"""The same prompt twice."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Probe

SENTENCES = Sentences(
    good="An agent that sends a prompt again, as after a lost connection, waits only for the last tokens.",
    part="An agent that sends a prompt again pays for a part of it a second time.",
    bad="An agent that sends a prompt again pays for all of it a second time.",
)


class Repeat(Probe):
    """Sends one prompt twice: a cache that works at all has the second one, but for its last token."""

    name, about, order = "repeat", "the same prompt twice", 10

    def run(self, lab: Lab) -> Iterator[Finding]:
        messages = [system(lab.material.text("repeat/system", lab.tokens * 3 // 4))]
        messages.append(user(lab.material.text("repeat/user", lab.tokens // 4)))
        cold = lab.observe(messages)
        yield from judge(self.name, lab, lab.observe(messages), shared=cold.size - 1, sentences=SENTENCES)
