"""Thinking that an agent sends back, or leaves out."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import assistant, system, tool_turn, user
from kvlab.audit.probe import Lab, Probe

SENT_BACK = Sentences(
    good="An agent that sends thinking back (reasoning_content) keeps its cache when the user says something new.",
    part="The template drops thinking once the user says something new: all that follows it is computed again.",
    bad="The template drops thinking once the user says something new, and the whole prompt is computed again.",
    else_verdict="note",
)
LEFT_OUT = Sentences(
    good="An agent may leave thinking out of what it sends back without losing its cache.",
    part="An agent that leaves thinking out of what it sends back pays again for all that follows it.",
    bad="An agent that leaves thinking out of what it sends back pays for the whole prompt again.",
    else_verdict="note",
)
WRITTEN_TOKENS = 4
"""A prompt that grows by fewer tokens with thinking does not hold it."""


class ThinkingSentBack(Probe):
    """Sends an agent's loop with thinking before a tool call, then a new user message, with the thinking and without.

    Many templates write thinking within such a loop and drop it once the user says something new.
    """

    name, about, order = "thinking", "thinking sent back, or left out", 85

    def run(self, lab: Lab) -> Iterator[Finding]:
        begun = [system(lab.text("thinking/system", 0.4)), user(lab.text("thinking/user", 0.1))]
        call, result = tool_turn("search", "the report", lab.text("thinking/result", 0.2), "call_1")
        said = [assistant(lab.text("thinking/answer", 0.1)), user(lab.text("thinking/next", 0.1))]
        thought = call | {"reasoning_content": lab.text("thinking/thought", 0.2)}
        loop = lab.observe(lab.history([*begun, thought, result]))
        kept = lab.observe(lab.history([*begun, thought, result, *said]))
        yield from judge(self.name, lab, kept, loop.size, SENT_BACK, of="sent_back")
        left_out = lab.observe(lab.history([*begun, call, result, *said]))
        if lab.counts_tokens:
            written = kept.size - left_out.size
            means = (
                "The template writes thinking of earlier turns into the prompt."
                if written >= WRITTEN_TOKENS
                else "The template leaves thinking of earlier turns out, whether it is sent back or not."
            )
            detail = f"{kept.size} prompt tokens with it, {left_out.size} without"
            yield Finding(self.name, "thinking_tokens", written, lab.unit, "note", detail, means)
        yield from judge(self.name, lab, left_out, left_out.size - 1, LEFT_OUT, of="left_out", shared_name="unchanged")
