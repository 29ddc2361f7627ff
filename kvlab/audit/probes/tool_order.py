"""The same tools in another order."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Probe

TOOLS = 4

REORDERED = Sentences(
    good="An agent may list its tools in any order.",
    part="An agent that lists its tools in another order pays for a part of the prompt again: sort them.",
    bad="An agent that lists its tools in another order pays for the whole prompt again: sort them.",
    else_verdict="note",
)


class ToolOrder(Probe):
    """Sends a prompt with four tools, then with the same four, the last one first."""

    name, about, order = "tool_order", "the same tools in another order", 80

    def run(self, lab: Lab) -> Iterator[Finding]:
        tools = lab.material.tools("lookup", TOOLS, lab.tokens // 8)
        messages = [system(lab.text("tool_order/system", 0.25)), user(lab.text("tool_order/user", 0.25))]
        first = lab.observe(messages, tools=tools)
        if lab.counts_tokens and first.size < 0.75 * lab.tokens:
            detail = f"a prompt of {first.size} tokens cannot hold them: the model's template writes no tools"
            yield Finding(self.name, "cached_tokens", None, lab.unit, "unknown", detail)
            return
        seen = lab.observe(messages, tools=tools[::-1])
        yield from judge(self.name, lab, seen, seen.size - 1, REORDERED, shared_name="unchanged")
