"""Cached answers beside cold ones, and whether cached tokens save the time that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from kvlab.audit.answers import Comparison, compare_answers, way_to_logprobs
from kvlab.audit.client import Reply
from kvlab.audit.errors import AuditError
from kvlab.audit.finding import Finding, Verdict
from kvlab.audit.material import assistant, system, user
from kvlab.audit.probe import Lab, Observation, Probe
from kvlab.counts import counted

Messages = list[dict[str, Any]]

ROUNDS = 2
"""Of every shape, each with texts of its own."""

ANSWER_TOKENS = 12
"""Of every answer: where the cache is wrong, the first tokens already differ."""

CLAIM_REPEATS = 3
"""Prompts sent again to compare claimed with saved time, beside what earlier probes have seen."""

MIN_CLAIMED_SHARE = 0.5
"""Of a prompt, claimed as cached: smaller claims save too little time to tell."""

MAX_ERROR_SHARE = 0.25
"""Of the claimed tokens: where the inferred number is less certain, it does not count."""

MIN_SAVED_SHARE = 0.5
"""Of the claimed tokens, inferred from the TTFT: below it the server has computed what it claims to have cached."""

TRUE = "An agent gets the same answer whether its prompt was cached or not."
ROUNDED = "An agent may get another answer from the cache where two tokens were equally good, and only there."
FALSE = "An agent's answer depends on what was asked before: the cache hands out KV that does not belong to the prompt."
MOVED = "An agent gets the same words, but the model's certainty differs with what the cache held."
SAVES = "The cached tokens that the server reports are time that an agent saves."
CLAIMS = "The server reports cached tokens and computes all the same: an agent waits as without a cache."


@dataclass(frozen=True)
class _Shape:
    """A prompt whose cold answer is taken first, and another one that changes what the cache holds of it."""

    name: str
    asked: Messages
    between: Messages | None


@dataclass(frozen=True)
class _Compared:
    shape: str
    comparison: Comparison
    cached: float | None
    steady: bool = True


class Truth(Probe):
    """Takes the answers of cold prompts, then sends each again with all or a part of it cached.

    What the cache holds the second time is: the prompt itself (``repeat``), a shorter conversation that it goes on
    (``append``), another question under its system prompt (``shared_prefix``), a prompt that parts from it in the
    middle of a message (``divergence``). A first answer is always a cold one, since its prompt begins with new words.
    """

    name, about, order = "truth", "cached answers equal cold ones, and cached tokens save time", 110

    def run(self, lab: Lab) -> Iterator[Finding]:
        how = way_to_logprobs(lab)
        compared = [_compare(lab, shape, how) for number in range(ROUNDS) for shape in _shapes(lab, number)]
        yield from _truth_findings(self.name, lab, compared, with_logprobs=bool(how))
        yield _claim_finding(self.name, lab)


def _shapes(lab: Lab, number: int) -> Iterator[_Shape]:
    def text(label: str, share: float) -> str:
        return lab.material.text(f"truth/{number}/{label}", round(share * lab.tokens))

    alone = [system(text("repeat", 0.75)), user(text("repeat/user", 0.2))]
    yield _Shape("repeat", alone, None)
    base = [system(text("append", 0.5)), user(text("append/user", 0.2))]
    yield _Shape("append", [*base, assistant(text("append/answer", 0.1)), user(text("append/next", 0.2))], base)
    shared = system(text("shared", 0.75))
    yield _Shape("shared_prefix", [shared, user(text("shared/a", 0.2))], [shared, user(text("shared/b", 0.2))])
    start, question = text("parts", 0.5), user(text("parts/user", 0.2))
    one, other = (system(f"{start} {text(f'parts/{end}', 0.3)}") for end in "ab")
    yield _Shape("divergence", [one, question], [other, question])


def _compare(lab: Lab, shape: _Shape, how: Mapping[str, Any]) -> _Compared:
    def answer() -> Reply:
        return lab.ask(shape.asked, max_tokens=ANSWER_TOKENS, **how)

    cold = answer()
    if shape.between is not None:
        lab.ask(shape.between, max_tokens=ANSWER_TOKENS)
    second = answer()
    compared = compare_answers(cold, second)
    steady = True
    if not compared.equal:
        steady = not compare_answers(cold, answer()).equal
    cached = float(second.cached_tokens or 0) if lab.reports_cached else None
    return _Compared(shape.name, compared, cached, steady)


def _truth_findings(probe: str, lab: Lab, compared: Sequence[_Compared], *, with_logprobs: bool) -> Iterator[Finding]:
    """Judge all comparisons together, and name those that differ."""
    if lab.reports_cached and not any(one.cached for one in compared):
        yield Finding(probe, "equal_answers", None, "ratio", "unknown", "nothing of any prompt was cached")
        return
    equal = sum(one.comparison.equal for one in compared)
    verdict, means = _truth_verdict(compared, with_logprobs)
    told = "; ".join(_told(one) for one in compared if not one.comparison.equal)
    how = f"{equal} of {counted(len(compared), 'answer')} equal to the cold ones"
    yield Finding(probe, "equal_answers", equal / len(compared), "ratio", verdict, f"{how}; {told}".rstrip("; "), means)
    distances = [one.comparison.distance for one in compared if one.comparison.distance is not None]
    if not distances:
        yield Finding(probe, "logprob_distance", None, "nats", "unknown", "the server gives no logprobs")
        return
    moved = any(one.comparison.moved for one in compared)
    why = "largest difference of a token's logprob, over the tokens that both answers begin with"
    yield Finding(probe, "logprob_distance", max(distances), "nats", "note", why, MOVED if moved else "")


def _told(one: _Compared) -> str:
    kind = " (a tie)" if one.comparison.tie else " (a third answer equals the cold one again)" if not one.steady else ""
    return f"{one.shape}: {one.comparison.at}{kind}"


def _truth_verdict(compared: Sequence[_Compared], with_logprobs: bool) -> tuple[Verdict, str]:
    """Return verdict and meaning. Without logprobs a single difference may be a tie."""
    different = [one for one in compared if not one.comparison.equal]
    false = [one for one in different if not one.comparison.tie and one.steady]
    if len(false) > (0 if with_logprobs else 1):
        return "bad", FALSE
    return ("note", ROUNDED) if different else ("good", TRUE)


def _claim_finding(probe: str, lab: Lab) -> Finding:
    """Compare the cached tokens that were claimed with the time that they saved."""
    metric = "saved_of_claimed"
    if not lab.reports_cached or lab.curve is None:
        why = "the server reports no cached tokens" if not lab.reports_cached else "there is no curve of cold prompts"
        return Finding(probe, metric, None, "ratio", "unknown", why)
    seen = [*lab.observations, *_repeats(lab)]
    shares = [share for one in seen if (share := telling_share(one)) is not None]
    if len(shares) < CLAIM_REPEATS:
        others = "the others claim too little, or their TTFT is too uncertain"
        why = f"{len(shares)} of {counted(len(seen), 'answer')} tell: {others}"
        return Finding(probe, metric, None, "ratio", "unknown", why)
    value = median(shares)
    ratio = "tokens that the TTFT saved, by the curve, over tokens claimed as cached"
    why = f"median over {counted(len(shares), 'answer')}: {ratio}"
    verdict: Verdict = "good" if value >= MIN_SAVED_SHARE else "bad"
    means = SAVES if verdict == "good" else CLAIMS
    return Finding(probe, metric, value, "ratio", verdict, why, means)


def _repeats(lab: Lab) -> Iterator[Observation]:
    for number in range(CLAIM_REPEATS):
        messages = [system(lab.material.text(f"truth/claim/{number}", round(1.5 * lab.tokens))), user("Go on.")]
        try:
            lab.ask(messages)
            yield lab.observe(messages)
        except AuditError:
            return


def telling_share(seen: Observation) -> float | None:
    """Return inferred over claimed cached tokens; None where the claim is small or the TTFT too uncertain."""
    claimed, inferred = seen.reported or 0, seen.inferred
    if inferred is None or claimed < MIN_CLAIMED_SHARE * seen.size or inferred.error > MAX_ERROR_SHARE * claimed:
        return None
    return seen.saved_share
