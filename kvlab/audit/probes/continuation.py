"""A plain completion of a prompt and the server's own completion of it: exactly what its cache may hold."""

from __future__ import annotations

from collections.abc import Iterator

from kvlab.audit.alive import alive_finding
from kvlab.audit.client import Reply
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.probe import Lab, Probe

LENGTHS = (1, 1, 4, 1, 1, 2, 1, 1)
"""Tokens of the first completion of each try, each of a prompt of its own. A text is not always read back as the tokens
that it was written in."""

ENOUGH = 3
"""Tries of which the text was read back as it was written, where the server counts tokens."""

JOINTS = ("", " ")
"""Between prompt and completion: some servers leave out the space that a completion begins with."""

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
        held = equal = 0
        for number, tokens in enumerate(LENGTHS):
            prompt = lab.material.text(f"continuation/{number}", max(12, lab.tokens // 16))
            begun = lab.client.complete(prompt, max_tokens=tokens)
            if not begun.is_complete:
                why = f"no answer from /v1/completions: status {begun.status}: {begun.error}"
                yield Finding(self.name, "continued", None, "ratio", "unknown", why)
                break
            rest = _continued(lab, prompt, begun)
            if not rest.is_complete:
                why = f"status {rest.status}: {rest.error}"
                yield Finding(self.name, "continued", 0, "ratio", "bad", why, FAILS)
                break
            if _is_read_back(begun, rest):
                whole = lab.client.complete(prompt, max_tokens=tokens + MORE_TOKENS)
                equal, held = equal + (_words(begun.text + rest.text) == _words(whole.text)), held + 1
            if held == ENOUGH:
                break
        if begun.is_complete and rest.is_complete:
            yield self._continued_finding(equal, held)
        yield alive_finding(self.name, lab)

    def _continued_finding(self, equal: int, held: int) -> Finding:
        if not held:
            why = f"none of {len(LENGTHS)} completions was read back as the tokens that it was written in"
            return Finding(self.name, "continued", None, "ratio", "note", why, DIFFERS)
        why = f"{equal} of {held} texts go on as in one piece"
        verdict: Verdict = "good" if equal == held else "note"
        return Finding(
            self.name, "continued", equal / held, "ratio", verdict, why, GOES_ON if equal == held else DIFFERS
        )


def _continued(lab: Lab, prompt: str, begun: Reply) -> Reply:
    """Send a prompt with its completion, joined in the way that the server reads as the tokens that it wrote."""
    for joint in JOINTS[: 1 if begun.text[:1].isspace() else None]:
        rest = lab.client.complete(prompt + joint + begun.text, max_tokens=MORE_TOKENS)
        if not rest.is_complete or _is_read_back(begun, rest):
            return rest
    return rest


def _is_read_back(begun: Reply, rest: Reply) -> bool:
    """Whether the server counts as many tokens in prompt and completion as it did in both; so too if it counts none."""
    counts = (begun.prompt_tokens, begun.completion_tokens, rest.prompt_tokens)
    if begun.prompt_tokens is None or begun.completion_tokens is None or rest.prompt_tokens is None:
        return True
    return counts[2] == begun.prompt_tokens + begun.completion_tokens


def _words(text: str) -> str:
    return "".join(text.split())
