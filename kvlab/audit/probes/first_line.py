"""The first line of the system prompt changes from request to request."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Probe

LINES = {
    "date": ("Today is Monday, 4 May 2026, 09:14:02.", "Today is Tuesday, 5 May 2026, 17:31:55."),
    "billing": (
        "x-anthropic-billing-header: cc_version=2.1.90.b41; cc_entrypoint=cli; cch=a41f0;",
        "x-anthropic-billing-header: cc_version=2.1.90.b41; cc_entrypoint=cli; cch=7c93e;",
    ),
}
"""Two versions of each line. The second is one that a coding agent writes first, with a checksum that changes."""

CALLED = {"date": "changes the date in its first line", "billing": "writes a changing billing line first"}


class FirstLine(Probe):
    """Sends a prompt twice, with another first line. A cache of prefixes cannot help; a server may drop the line."""

    name, about, order = "first_line", "another date or billing line at the very beginning", 75

    def run(self, lab: Lab) -> Iterator[Finding]:
        for name, lines in LINES.items():
            rest, asked = lab.text(f"first_line/{name}/system", 0.75), user(lab.text(f"first_line/{name}/user", 0.25))
            for line in lines:
                seen = lab.observe([system(f"{line}\n{rest}"), asked])
            sentences = Sentences(
                good=f"An agent that {CALLED[name]} loses nothing: the server leaves it out of what it compares.",
                part=f"An agent that {CALLED[name]} pays for a part of the prompt again.",
                bad=f"An agent that {CALLED[name]} pays for the whole prompt again: write it last.",
                else_verdict="note",
            )
            yield from judge(self.name, lab, seen, seen.size - 1, sentences, of=name, shared_name="unchanged")
