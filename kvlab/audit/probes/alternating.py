"""Two agents that take turns."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import assistant, system, user
from kvlab.audit.probe import Lab, Probe

ALTERNATING = Sentences(
    good="Two agents that take turns do not disturb each other.",
    part="Two agents that take turns cost each other a part of their history.",
    bad="Two agents that take turns throw each other out: every turn pays for the whole prompt.",
)


class Alternating(Probe):
    """Asks for agent A, agent B, A's next turn, B's next turn; they have nothing in common."""

    name, about, order = "alternating", "two agents in turns: A, B, A, B", 50

    def run(self, lab: Lab) -> Iterator[Finding]:
        agents = {
            name: [
                system(lab.text(f"alternating/{name}/system", 0.75)),
                user(lab.text(f"alternating/{name}/user", 0.25)),
            ]
            for name in ("first", "second")
        }
        opened = {name: lab.observe(messages) for name, messages in agents.items()}
        for name, messages in agents.items():
            seen = lab.observe([*messages, assistant("Yes."), user(lab.text(f"alternating/{name}/next", 0.125))])
            yield from judge(self.name, lab, seen, opened[name].size, ALTERNATING, of=f"{name}_agent")
