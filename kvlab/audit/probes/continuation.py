"""A plain completion of a prompt and the server's own completion of it: exactly what its cache may hold."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.alive import alive_finding
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.probe import Lab, Probe

TRIES = (1, 1, 4)
"""Tokens of the first completion of each try. A text is not always read back as the tokens that it was written in."""

MORE_TOKENS = 4
"""Asked for behind it."""

GOES_ON = "An agent can continue a text where the server stopped."
DIFFERS = "A text that is continued is read as other tokens than it was written in, so the rest may be worded anew."
FAILS = "An agent that continues the server's own text gets no answer."


class Continuation(Probe):
    """Sends a prompt with its completion appended, so that the cache may hold the whole prompt to the last token.

    A server must compute the last token again in that case; one that does not has nothing to compute, and may die of
    it. So this probe is the last one.
    """

    name, about, order = "continuation", "a text continued where the server's own completion ended", 200

    def run(self, lab: Lab) -> Iterator[Finding]:
        equal = 0
        for number, tokens in enumerate(TRIES):
            prompt = lab.material.text(f"continuation/{number}", max(12, lab.tokens // 16))
            begun = lab.client.complete(prompt, max_tokens=tokens)
            if not begun.is_complete:
                why = f"no answer from /v1/completions: status {begun.status}: {begun.error}"
                yield Finding(self.name, "continued", None, "ratio", "unknown", why)
                break
            rest = lab.client.complete(prompt + begun.text, max_tokens=MORE_TOKENS)
            if not rest.is_complete:
                why = f"status {rest.status}: {rest.error}"
                yield Finding(self.name, "continued", 0, "ratio", "bad", why, FAILS)
                break
            whole = lab.client.complete(prompt, max_tokens=tokens + MORE_TOKENS)
            equal += begun.text + rest.text == whole.text
        else:
            why = f"{equal} of {len(TRIES)} texts go on as in one piece"
            verdict: Verdict = "good" if equal == len(TRIES) else "note"
            means = GOES_ON if verdict == "good" else DIFFERS
            yield Finding(self.name, "continued", equal / len(TRIES), "ratio", verdict, why, means)
        yield alive_finding(self.name, lab)
