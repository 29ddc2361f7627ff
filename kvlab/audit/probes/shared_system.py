"""One system prompt, several users."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import assistant, system, user
from kvlab.audit.probe import Lab, Probe

OTHER_USER = Sentences(
    good="Agents with one system prompt pay for it once.",
    part="Agents with one system prompt pay again for a part of it.",
    bad="Every agent pays for the common system prompt anew.",
)
SHORT_SYSTEM = Sentences(
    good="A system prompt is shared even where it is a small part of the prompt.",
    part="A system prompt that is a small part of the prompt is shared in part.",
    bad="A system prompt is not shared where it is a small part of the prompt, as in long conversations.",
)
FIRST_USER = Sentences(
    good="A conversation keeps its cache while others use its system prompt.",
    part="A conversation loses a part of its cache once another one uses its system prompt.",
    bad="A conversation loses its cache once another one uses its system prompt.",
)


class SharedSystem(Probe):
    """Sends one system prompt with two users, goes on with the first one, and does so with a short system prompt."""

    name, about, order = "shared_system", "one system prompt, another user", 40

    def run(self, lab: Lab) -> Iterator[Finding]:
        shared = system(lab.text("shared_system/system", 0.75))
        one = [shared, user(lab.text("shared_system/one", 0.25))]
        first = lab.observe(one)
        other = lab.observe([shared, user(lab.text("shared_system/two", 0.25))])
        yield from judge(self.name, lab, other, other.shared_with(first), OTHER_USER)
        back = lab.observe([*one, assistant("Yes."), user(lab.text("shared_system/next", 0.125))])
        yield from judge(self.name, lab, back, first.size, FIRST_USER, of="first_user")
        short = system(lab.text("shared_system/short", 0.15))
        long = lab.observe([short, user(lab.text("shared_system/three", 0.85))])
        seen = lab.observe([short, user(lab.text("shared_system/four", 0.85))])
        yield from judge(self.name, lab, seen, seen.shared_with(long), SHORT_SYSTEM, of="short_system")
