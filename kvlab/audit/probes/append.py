"""An agent's next turn: the prompt, its reply, and a new message."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import assistant, system, user
from kvlab.audit.probe import Lab, Observation, Probe

REPLY_TOKENS = 24
MIN_REPLY_TOKENS = 4
"""Generated before the model ended by itself: fewer do not stand out from the template's own tokens."""

NEXT_TURN = Sentences(
    good="An agent's next turn pays only for what is new, so that its 15th turn starts as quickly as its second.",
    part="An agent's next turn pays again for a part of its history.",
    bad="An agent's next turn pays again for its whole history, and the wait grows with every turn.",
)
REPLY_REUSED = "What the model has written need not be read again when the agent sends it back."
REPLY_RECOMPUTED = "What the model has written is computed a second time when the agent sends it back."


class Append(Probe):
    """Goes on with a conversation, and finds out whether the reply's own KV is used."""

    name, about, order = "append", "the next turn of a conversation", 20

    def run(self, lab: Lab) -> Iterator[Finding]:
        first = [system(lab.text("append/system", 0.75)), user(lab.text("append/user", 0.25))]
        turn = lab.observe(first, max_tokens=REPLY_TOKENS)
        said = turn.reply.text
        seen = lab.observe([*first, assistant(said or "Yes."), user(lab.text("append/next", 0.125))])
        yield from judge(self.name, lab, seen, turn.size, NEXT_TURN)
        yield self._reply(lab, turn, seen)

    def _reply(self, lab: Lab, turn: Observation, seen: Observation) -> Finding:
        """Return the finding on the reply's tokens."""
        about = (self.name, "reply_cached_tokens", None, lab.unit)
        generated = turn.reply.completion_tokens or len(turn.reply.text.split())
        if not turn.reply.text or generated < MIN_REPLY_TOKENS:
            return Finding(*about, "unknown", f"the reply has {generated} tokens: too short to tell")
        if seen.reported is None:
            error = f"± {seen.inferred.error:.0f}" if seen.inferred else "not inferred"
            return Finding(*about, "unknown", f"the reply has {generated} tokens, and cached tokens are {error}")
        reused = min(max(0, seen.reported - turn.size), generated)
        detail = f"of {generated} that were generated after a prompt of {turn.size}"
        is_reused = reused >= generated / 2
        means = REPLY_REUSED if is_reused else REPLY_RECOMPUTED
        return Finding(*about[:2], reused, lab.unit, "good" if is_reused else "note", detail, means)
