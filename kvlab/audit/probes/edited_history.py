"""A tool's result is dropped from the history, as agents do that save context."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import assistant, shared_part, system, tool_turn, user
from kvlab.audit.probe import Lab, Observation, Probe

CLEARED = "[cleared]"

EDITED = Sentences(
    good="An agent that drops an old tool result pays from that place on: drop several at a time, and late ones.",
    part="An agent that drops an old tool result pays again for a part of what stands before it, too.",
    bad="An agent that drops an old tool result pays for the whole prompt again.",
)
KEPT = (
    "What follows a dropped result is taken from the cache, moved to its new place: quick, but computed with the "
    "dropped text in view, so that answers may differ from those without a cache."
)


class EditedHistory(Probe):
    """Sends a conversation with a tool's result in its middle, then the same with the result cleared."""

    name, about, order = "edited_history", "a tool result is dropped from the history", 70

    def run(self, lab: Lab) -> Iterator[Finding]:
        before = [system(lab.text("edited/system", 0.4)), user(lab.text("edited/user", 0.1))]
        after = [assistant(lab.text("edited/answer", 0.4)), user(lab.text("edited/next", 0.1))]
        results = lab.text("edited/result", 0.25), CLEARED
        whole, edited = (
            lab.history([*before, *tool_turn("search", "the report", result, "call_1"), *after]) for result in results
        )
        earlier = lab.observe(whole)
        seen = lab.observe(edited)
        shared = seen.shared_with(earlier)
        yield from judge(self.name, lab, seen, shared, EDITED)
        yield from self._after(lab, earlier, seen, shared)

    def _after(self, lab: Lab, earlier: Observation, seen: Observation, shared: float) -> Iterator[Finding]:
        """Yield the finding on what follows the edit, if it is cached."""
        backwards = shared_part(_reversed(seen), _reversed(earlier)) * seen.size
        kept = (seen.cached or 0.0) - shared
        if seen.cached is not None and kept >= backwards / 2:
            detail = f"of about {backwards:.0f} that follow the edit"
            yield Finding(self.name, "cached_after_the_edit", round(kept), lab.unit, "note", detail, KEPT)


def _reversed(seen: Observation) -> list[dict[str, str]]:
    """Return the messages from the last to the first, each backwards."""
    turned = []
    for message in reversed(seen.messages):
        turned.append({"role": message["role"], "content": str(message.get("content") or "")[::-1]})
    return turned
