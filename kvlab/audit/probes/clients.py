"""Several agents at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvlab.audit.alive import SURVIVES, alive_finding
from kvlab.audit.client import Reply
from kvlab.audit.finding import Finding
from kvlab.audit.material import system, user
from kvlab.audit.probe import Lab, Probe
from kvlab.counts import counted

COUNTS = (1, 4, 8, 32)
"""Agents at once."""

ANSWER_TOKENS = 24
"""Of each answer: long enough for streams to overlap where a server lets them."""

LONG_S = 120.0
"""A crowd that is predicted to take longer, by the one before it, is left out."""

MIN_STREAMING_SHARE = 0.2
"""Of a crowd's time, all streams together: with less, even a queue of streams would show no overlap."""

REFUSALS = (429, 503)
"""How a server says that it has too much to do."""

SIDE_BY_SIDE = "Agents are answered side by side: none waits for another's whole answer."
SOME = "At most so many agents are answered at a time: the others wait for a place, or for their prompts."
ONE_BY_ONE = "Agents are answered one after the other: each waits for all before it."
REFUSED = "An agent is told to come again later, and its client must do so."
LOST = "An agent's request is lost among many, without an error that says what to do."


@dataclass(frozen=True)
class _Timed:
    """An answer, and when it was asked for, in seconds of the lab's clock."""

    began_s: float
    reply: Reply

    @property
    def first_s(self) -> float:
        """When its first piece came."""
        return self.began_s + self.reply.ttft_s

    @property
    def last_s(self) -> float:
        """When its last piece came."""
        return self.first_s + sum(self.reply.gaps_s)


class Clients(Probe):
    """Lets 1, 4, 8 and 32 agents ask at once: one system prompt, a question each."""

    name, about, order = "clients", "1, 4, 8 and 32 agents at once", 130

    def __init__(self, counts: Sequence[int] = COUNTS) -> None:
        self.counts = tuple(counts)

    def run(self, lab: Lab) -> Iterator[Finding]:
        shared = system(lab.material.text("clients/system", lab.tokens))
        lab.ask([shared, user("Go on.")])  # each crowd then finds the same: a system prompt that has been there
        taken_s = 0.0
        for before, count in zip((1, *self.counts), self.counts, strict=False):
            if taken_s * count / before > LONG_S:
                why = f"not run: {before} took {taken_s:.0f} s, so {count} would take too long"
                yield Finding(self.name, f"tokens_per_s_{count}", None, "tokens/s", "unknown", why)
                continue
            began = lab.clock()
            crowd = _crowd(lab, shared, count)
            taken_s = lab.clock() - began
            yield from _findings(self.name, count, crowd, taken_s)
            alive = alive_finding(self.name, lab)
            if alive.verdict == "bad":
                yield alive
                return
        yield Finding(self.name, "alive", 1, "", "good", "a short question was answered after each crowd", SURVIVES)


def _crowd(lab: Lab, shared: dict[str, str], count: int) -> list[_Timed]:
    """Send ``count`` requests at once and wait for all of them."""
    start = threading.Barrier(count)
    answers: list[_Timed | None] = [None] * count

    def one(number: int) -> None:
        question = user(lab.material.text(f"clients/{count}/{number}", lab.tokens // 8))
        start.wait()
        began = lab.clock()
        answers[number] = _Timed(began, lab.client.chat([shared, question], max_tokens=ANSWER_TOKENS))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer for answer in answers if answer is not None]


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    """Return how many of these (first, last) times overlap at most; a span that begins as another ends does not."""
    steps = sorted([(first, 1) for first, _ in spans] + [(last, -1) for _, last in spans])
    running = most = 0
    for _, step in steps:
        running += step
        most = max(most, running)
    return most


def _findings(probe: str, count: int, crowd: Sequence[_Timed], taken_s: float) -> Iterator[Finding]:
    """Judge one crowd."""
    good = [timed for timed in crowd if timed.reply.is_complete]
    yield from _failures(probe, count, [timed.reply for timed in crowd if not timed.reply.is_complete])
    if not good:
        return
    tokens = sum(_tokens(timed.reply) for timed in good)
    how = "answers of all agents together, over the seconds until the last one was there"
    yield Finding(probe, f"tokens_per_s_{count}", tokens / taken_s, "tokens/s", "note", how)
    waits = sorted(timed.reply.ttft_s for timed in good)
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        value = 1e3 * waits[min(len(waits) - 1, int(share * len(waits)))]
        yield Finding(probe, f"ttft_{name}_ms_{count}", value, "ms", "note", f"of {counted(len(waits), 'answer')}")
    if count > 1:
        yield _overlap_finding(probe, count, good, taken_s)


def _tokens(reply: Reply) -> int:
    """Tokens of an answer; pieces of its stream where the server counts none."""
    return reply.completion_tokens if reply.completion_tokens is not None else len(reply.gaps_s) + 1


def _overlap_finding(probe: str, count: int, good: Sequence[_Timed], taken_s: float) -> Finding:
    """Judge whether streams ran side by side, from the times of their first and last pieces."""
    metric = f"at_once_{count}"
    spans = [(timed.first_s, timed.last_s) for timed in good if timed.reply.gaps_s]
    if len(spans) < 2:
        why = "answers came in one piece each, so their times do not tell"
        return Finding(probe, metric, None, "streams", "unknown", why)
    most = most_at_once(spans)
    why = f"of {len(spans)} streams, {most} ran at the same time at most"
    if most >= len(spans):
        return Finding(probe, metric, most, "streams", "good", why, SIDE_BY_SIDE)
    if sum(last - first for first, last in spans) < MIN_STREAMING_SHARE * taken_s:
        why = f"{why}, but answers are too short beside their prompts to tell whether they could"
        return Finding(probe, metric, most, "streams", "unknown", why)
    return Finding(probe, metric, most, "streams", "note" if most > 1 else "bad", why, SOME if most > 1 else ONE_BY_ONE)


def _failures(probe: str, count: int, failed: Sequence[Reply]) -> Iterator[Finding]:
    """Name what was refused, and what was lost."""
    refused = [reply for reply in failed if reply.status in REFUSALS]
    lost = [reply for reply in failed if reply.status not in REFUSALS]

    def told(replies: Sequence[Reply]) -> str:
        kinds = Counter(f"status {reply.status}: {reply.error}" for reply in replies)
        return "; ".join(f"{number} x {kind}" for kind, number in kinds.most_common(3))

    if refused:
        yield Finding(probe, f"refused_{count}", len(refused), "requests", "note", told(refused), REFUSED)
    if lost:
        yield Finding(probe, f"lost_{count}", len(lost), "requests", "bad", told(lost), LOST)
    if not failed:
        yield Finding(probe, f"refused_{count}", 0, "requests", "note", "all were answered")
