"""How many conversations a cache holds."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.client import Message
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.judging import NOT_KNOWN
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Observation, Probe
from kvlab.counts import counted

MOST_CONVERSATIONS = 16
CONVERSATION_SHARE = 0.5
"""Of a usual prompt: the length of each conversation."""

HELD_SHARE = 0.5
"""Of its prompt, cached: from here on a conversation counts as held."""

MANY_CONVERSATIONS = 8
"""As many agents as a program with sub-agents runs side by side; a cache of fewer is named as bad for them."""


class Rotation(Probe):
    """Opens 16 conversations, then asks for them again, the latest first, until one is not held.

    The number before it is the capacity. One conversation more than that, in rotation, then tells the order in which
    they leave: first in, first out and least recently used lose every one of them.
    """

    name, about, order = "rotation", "how many conversations are held", 60

    def run(self, lab: Lab) -> Iterator[Finding]:
        opened = [_conversation(lab, f"rotation/{number}") for number in range(MOST_CONVERSATIONS)]
        for messages in opened:
            lab.observe(messages)
        held, missed, last = 0, None, None
        for messages in reversed(opened):
            last = lab.observe(messages)
            if not _is_held(last):
                missed = last
                break
            held += 1
        if last is not None and not last.is_known:
            yield Finding(self.name, "conversations_held", None, "conversations", "unknown", last.source, NOT_KNOWN)
            return
        yield self._capacity(lab, held, missed)
        if missed is not None and held > 0:
            yield self._order(lab, held)

    def _capacity(self, lab: Lab, held: int, missed: Observation | None) -> Finding:
        size = round(CONVERSATION_SHARE * lab.tokens)
        if missed is None:
            detail = f"all {held} conversations of about {size} tokens were held; more were not tried"
            means = f"At least {held} agents may take turns without losing their history."
            return Finding(self.name, "conversations_held", held, "conversations", "good", detail, means)
        detail = (
            f"of {MOST_CONVERSATIONS} conversations of about {size} tokens; cached tokens are {missed.source}, "
            f"{missed.cached or 0:.0f} of {missed.size} in the first that was not held"
        )
        means = f"More than {held} agents that take turns pay for their whole prompts again and again."
        verdict: Verdict = "note" if held >= MANY_CONVERSATIONS else "bad"
        return Finding(self.name, "conversations_held", held, "conversations", verdict, detail, means)

    def _order(self, lab: Lab, held: int) -> Finding:
        """Send one conversation more than are held, twice round; return how many the second round found."""
        ring = [_conversation(lab, f"rotation/ring/{number}") for number in range(held + 1)]
        for messages in ring:
            lab.observe(messages)
        found = sum(_is_held(lab.observe(messages)) for messages in ring)
        detail = f"of {counted(len(ring), 'conversation')} in rotation, in the second round"
        means = (
            "One agent too many, and all of them lose their history: the cache drops the one that is needed next."
            if found == 0
            else "One agent too many costs some of them their history, and not all."
        )
        return Finding(self.name, "held_of_one_more", found, "conversations", "note", detail, means)


def _conversation(lab: Lab, label: str) -> list[Message]:
    return [
        system(lab.text(f"{label}/system", 0.75 * CONVERSATION_SHARE)),
        user(lab.text(f"{label}/user", 0.25 * CONVERSATION_SHARE)),
    ]


def _is_held(seen: Observation) -> bool:
    return seen.cached is not None and seen.cached >= HELD_SHARE * seen.size
