"""The same conversation before and after the server was started anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from kvlab.audit.answers import compare_answers, way_to_logprobs
from kvlab.audit.finding import Finding
from kvlab.audit.judging import Sentences, judge
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Observation, Probe
from kvlab.audit.shell import run_and_wait

ANSWER_TOKENS = 16
SETTLE_S = 3.0
"""Before the server is killed: an agent's pause, in which a server may write what it has."""

NOTHING_SHARE = 0.05
"""Of a prompt, cached: with less, an answer is a cold one."""

STAYED = "An agent's session goes on after a restart without computing its history again."
PARTLY = "After a restart an agent pays for a part of its history again."
GONE = "After a restart every agent pays for its whole history again."
SAME = "An agent gets the same answer after a restart."
TIE = "An agent may get another answer after a restart where two tokens were equally good."
UNSTEADY = "An agent may get another answer to the same prompt, with or without a restart."
WRONG = "After a restart an agent gets a wrong answer: what the server has restored does not belong to the prompt."
BACK = "Agents must wait this long, and try again, when the server is restarted."
AWAY = "The server does not come back by itself: agents stand still until somebody looks after it."


class Restart(Probe):
    """Asks, has the server stopped and started by the user's command, and asks again."""

    name, about, order = "restart", "the same conversation after a restart", 150
    needs = frozenset({"restart"})
    settle_s: ClassVar[float] = 0.0

    def run(self, lab: Lab) -> Iterator[Finding]:
        messages = [system(lab.material.text(f"{self.name}/system", lab.tokens * 3 // 4))]
        messages.append(user(lab.material.text(f"{self.name}/user", lab.tokens // 4)))
        how = way_to_logprobs(lab)
        before = lab.observe(messages, max_tokens=ANSWER_TOKENS, **how)
        lab.sleep(self.settle_s)
        back = run_and_wait(lab, self.command(lab))
        if back.error:
            yield Finding(self.name, "back_s", None, "s", "bad", back.error, AWAY)
            return
        yield Finding(self.name, "back_s", back.seconds, "s", "note", "from the command to the first answer", BACK)
        after = lab.observe(messages, max_tokens=ANSWER_TOKENS, **how)
        told = Sentences(STAYED, PARTLY, GONE)
        yield from judge(self.name, lab, after, shared=before.size - 1, sentences=told)
        yield self._answer_finding(before, after)

    def _answer_finding(self, before: Observation, after: Observation) -> Finding:
        compared = compare_answers(before.reply, after.reply)
        if compared.equal:
            return Finding(self.name, "same_answer", 1, "", "good", "the same text", SAME)
        if compared.tie:
            return Finding(self.name, "same_answer", 0, "", "note", f"a tie: {compared.at}", TIE)
        if after.cached is not None and after.cached <= NOTHING_SHARE * after.size:
            return Finding(self.name, "same_answer", 0, "", "note", f"nothing was cached; {compared.at}", UNSTEADY)
        return Finding(self.name, "same_answer", 0, "", "bad", compared.at, WRONG)

    def command(self, lab: Lab) -> str:
        """Return the shell command that stops and starts the server."""
        return lab.restart or ""


class Kill(Restart):
    """Has the server killed instead, as a power cut would, and started again."""

    name, about, order = "kill", "the same conversation after the server was killed", 160
    needs = frozenset({"kill"})
    settle_s = SETTLE_S

    def command(self, lab: Lab) -> str:
        return lab.kill or ""
