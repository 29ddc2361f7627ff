"""The verdict on one observation: cached tokens beside those that the prompt shares with an earlier one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.probe import Lab, Observation

GOOD_SHARE = 0.8
"""Of the shared tokens, cached: blocks of up to 20 % of a prompt may be lost at its end."""

BAD_SHARE = 0.2
"""Of the shared tokens, cached: below it nothing but the template's own first tokens came from the cache."""


NOT_KNOWN = "Cached tokens are not known: the server reports none, and its TTFT is too uneven to infer them."


@dataclass(frozen=True)
class Sentences:
    """What a probe's result means for an agent: all that is shared was cached, a part of it, or nothing.

    ``else_verdict`` stands for ``bad`` where no cache of prefixes can do better, and the client must change.
    """

    good: str
    part: str
    bad: str
    else_verdict: Verdict = "bad"


def judge(
    probe: str,
    lab: Lab,
    seen: Observation,
    shared: float,
    sentences: Sentences,
    *,
    of: str = "",
    shared_name: str = "shared",
) -> Iterator[Finding]:
    """Yield the finding on the cached tokens, and the numbers behind it as findings of their own.

    ``shared`` is how much of the prompt an earlier one began with, and ``shared_name`` what to call it: ``unchanged``
    where the same text stands elsewhere. ``of`` goes before the metrics' names where a probe observes several requests.
    """
    verdict, means = _verdict(seen, shared, sentences)
    before = f"{of}_" if of else ""
    detail = f"{seen.size} {lab.unit}, of which about {shared:.0f} are {shared_name}; cached tokens are {seen.source}"
    value = None if seen.cached is None else round(seen.cached)
    yield Finding(probe, f"{before}cached_tokens", value, lab.unit, verdict, detail, means)
    if seen.reported is not None and seen.inferred is not None:
        told = f"± {seen.inferred.error:.0f} by TTFT {1e3 * seen.reply.ttft_s:.0f} ms"
        inferred = round(seen.inferred.tokens)
        yield Finding(probe, f"{before}inferred_cached_tokens", inferred, lab.unit, "note", told)
    yield Finding(probe, f"{before}{shared_name}_tokens", round(shared), lab.unit, "note")
    yield Finding(probe, f"{before}prompt_tokens", seen.size, lab.unit, "note")


def _verdict(seen: Observation, shared: float, sentences: Sentences) -> tuple[Verdict, str]:
    if seen.cached is None or not seen.is_known:
        return "unknown", NOT_KNOWN
    share = seen.cached / max(shared, 1)
    if share >= GOOD_SHARE:
        return "good", sentences.good
    if share >= BAD_SHARE:
        return "note", sentences.part
    return sentences.else_verdict, sentences.bad
