"""A long prompt that its client gives up in mid-prefill, and sends again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvlab.audit.alive import alive_finding
from kvlab.audit.errors import AuditError
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Observation, Probe

GIVE_UP_AT = 0.4
"""Of the predicted prefill: late enough for progress, early enough that the server is still at it."""

WANTED_S = 1.5
"""Predicted prefill of the prompt: long beside the rest of a request."""

SIZES = (4, 8, 16)
"""Lengths to choose from, in prompts of the usual size; the first that takes long enough."""

LONGEST_S = 30.0
"""A prompt is no longer than this, unless the shortest one is."""

WAIT_SHARE = 0.5
"""Of what the server had left to compute: a short request that waited longer had to wait for that."""

MAX_SPREAD = 0.5
"""Of the curve of cold prompts: where times vary more, a wait is no sign of anything."""

KEPT_SHARE = 0.5
"""Of what the server had computed when the client left: from here on, progress counts as kept."""

FINISHED_SHARE = 0.9
"""Of the prompt, cached: the server went on to its end."""

FINISHED = "The server computed the prompt to its end without its client, so an agent that tries again finds all of it."
KEPT = "An agent that times out in a long prefill and tries again goes on from where it was."
LOST = "An agent that times out in a long prefill starts from nothing each time, and may never get its answer."
FREE = "An agent that gives up costs the others nothing."
BUSY = "The server computes for an agent that has left, and every other agent waits for that."


@dataclass(frozen=True)
class _GivenUp:
    """A prompt that was given up: its messages, its size, its predicted prefill and the time of giving up, seconds."""

    messages: list[dict[str, str]]
    tokens: int
    predicted_s: float
    after_s: float

    @property
    def left_s(self) -> float:
        """What the server had left to compute, by the curve."""
        return self.predicted_s - self.after_s


class Abort(Probe):
    """Leaves in mid-prefill, asks something short at once, waits for an idle server, and sends the prompt again."""

    name, about, order = "abort", "a long prompt given up in mid-prefill, and sent again", 120

    def run(self, lab: Lab) -> Iterator[Finding]:
        if lab.curve is None:
            yield Finding(
                self.name, "ran", None, "", "unknown", "there is no curve of cold prompts to choose a moment by"
            )
            return
        given_up = _give_up(lab)
        if given_up is None:
            why = "the server answered before the request was given up: its prefill is too quick to be interrupted"
            yield Finding(self.name, "ran", None, "", "unknown", why)
            return
        yield _wait_finding(self.name, lab, given_up)
        alive = alive_finding(self.name, lab)
        if alive.verdict == "good":
            lab.sleep(given_up.predicted_s)  # whatever goes on for a client that has left is over then
            yield from _retry_findings(self.name, lab, given_up, lab.observe(given_up.messages))
        yield alive


def _give_up(lab: Lab) -> _GivenUp | None:
    """Send a long prompt and leave; None where the answer came first, twice."""
    curve = lab.curve
    if curve is None:
        return None
    fitting = [size for size in SIZES if curve.ttft(size * lab.tokens) <= LONGEST_S] or SIZES[:1]
    size = next((size for size in fitting if curve.ttft(size * lab.tokens) >= WANTED_S), fitting[-1])
    share = GIVE_UP_AT
    for attempt in range(2):
        tokens = size * lab.tokens
        messages = [system(lab.material.text(f"abort/{attempt}", tokens)), user("Go on.")]
        predicted = curve.ttft(tokens)
        reply = lab.client.chat(messages, max_tokens=1, timeout_s=share * predicted)
        if reply.status not in (0, 200):
            raise AuditError(f"the long prompt was refused with status {reply.status}: {reply.error}")
        if not reply.is_complete:
            return _GivenUp(messages, tokens, predicted, share * predicted)
        share /= 2
    return None


def _wait_finding(probe: str, lab: Lab, given_up: _GivenUp) -> Finding:
    """Ask something short at once: does it wait for the request that was given up?"""
    text = lab.material.text("abort/short", max(8, lab.tokens // 16))
    reply = lab.client.chat([user(text)], max_tokens=1)
    if not reply.is_complete or lab.curve is None:
        return Finding(probe, "wait_behind", None, "s", "bad", f"no answer: {reply.error}", BUSY)
    waited = max(0.0, reply.ttft_s - lab.curve.ttft(lab.size([user(text)], reply)))
    why = (
        f"a short request at once took {waited:.2f} s longer than alone; given up after {given_up.after_s:.2f} s "
        f"of about {given_up.predicted_s:.2f} s of prefill"
    )
    busy = waited > WAIT_SHARE * given_up.left_s
    if busy and lab.curve.spread > MAX_SPREAD:
        return Finding(probe, "wait_behind", waited, "s", "unknown", f"{why}; times are too uneven here to judge it")
    return Finding(probe, "wait_behind", waited, "s", "bad" if busy else "good", why, BUSY if busy else FREE)


def _retry_findings(probe: str, lab: Lab, given_up: _GivenUp, again: Observation) -> Iterator[Finding]:
    """Judge how much of the prompt was there when it was sent again."""
    computed = given_up.after_s / given_up.predicted_s * again.size
    why = (
        f"{again.size} {lab.unit}, about {computed:.0f} computed when the client left; cached tokens are {again.source}"
    )
    if again.cached is None or not again.is_known:
        yield Finding(probe, "cached_after_abort", None, lab.unit, "unknown", why)
        return
    kept = again.cached >= KEPT_SHARE * computed
    verdict: Verdict = "good" if kept else "bad"
    means = KEPT if kept else LOST
    if again.cached > FINISHED_SHARE * again.size > computed:
        means = FINISHED
    yield Finding(probe, "cached_after_abort", round(again.cached), lab.unit, verdict, why, means)
    yield Finding(probe, "computed_before_abort", round(computed), lab.unit, "note", "by the curve of cold prompts")
