"""One sentence on a run, computed from its rows: which policy is best at what, and what the rows cannot tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvlab.counts import counted
from kvlab.results.answers import REFERENCE
from kvlab.results.forced_summary import split_forced
from kvlab.results.forced_verdict import forced_verdict
from kvlab.results.load import busy_note
from kvlab.results.standing import Standing, standing
from kvlab.results.summary import last_turn, summarize
from kvlab.results.void import void_note
from kvlab.results.wording import bytes_text, listed, marked, ms_text, policy_name

SAME_TIME_SHARE = 0.15
"""Single measurements of a time that are nearer than this are called equal."""
SAME_BYTES_SHARE = 0.02


@dataclass(frozen=True)
class RunVerdict:
    """A sentence and notes on it, as Markdown: policies stand in backticks."""

    sentence: str
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return plain text, a line for each note."""
        return "\n".join(line.replace("`", "") for line in (self.sentence, *self.notes))

    def html(self) -> str:
        """Return paragraphs of HTML."""
        style = "opacity:.75;font-size:88%;margin-top:3px"
        notes = "".join(f"<div style='{style}'>{marked(note)}</div>" for note in self.notes)
        return f"<div>{marked(self.sentence)}</div>{notes}"


def verdict(rows: pl.DataFrame, provenance: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> RunVerdict:
    """Judge the policies of these rows, which are of one workload at one point.

    Times are compared by their ranges over repeats, answers question by question: where neither tells two policies
    apart, both are named. Of a teacher-forced workload it says which is nearest to `full`. `labels` has the short
    names of policies.
    """
    forced, _ = split_forced(rows)
    if not forced.is_empty():
        sentence, notes = forced_verdict(forced, labels or {})
        return RunVerdict(sentence, tuple(notes))
    summary = summarize(rows)
    if summary.is_empty():
        return RunVerdict("Nothing was measured.")
    found = _Judge(rows, summary, labels or {})
    return RunVerdict(found.sentence(), tuple(found.notes(provenance)))


class _Judge:
    def __init__(self, rows: pl.DataFrame, summary: pl.DataFrame, labels: Mapping[str, str]) -> None:
        self.policies: list[str] = summary["policy"].to_list()
        self.facts: dict[str, dict[str, Any]] = {r["policy"]: r for r in summary.iter_rows(named=True)}
        self.labels = labels
        self.turn = last_turn(rows)
        self.graded: Standing | None = standing(rows.filter(pl.col("policy").is_in(self.policies)))
        self.void = self.graded is None and void_note(rows) != ""
        self.time = "ttft_last_ms" if any(self.facts[p]["ttft_last_ms"] for p in self.policies) else "ttft_first_ms"
        self.repeated = any((self.facts[p]["samples"] or 0) > 1 for p in self.policies)

    def sentence(self) -> str:
        if len(self.policies) == 1:
            return self._alone(self.policies[0])
        best = [p for p in self.policies if self.graded is None or p in self.graded.best]
        quality = self._quality(best)
        several = len(best) > 1
        of_these = "of these, " if quality and several and len(best) < len(self.policies) else ""
        cost = [part for part in (self._bytes(best), self._time(best)) if part] if several else self._costs_of(best[0])
        clauses = [part for part in (quality, of_these + " and ".join(cost) if cost else "") if part]
        return f"Of {counted(len(self.policies), 'policy', 'policies')}, {'; '.join(clauses) or 'none was measured'}."

    def notes(self, provenance: Mapping[str, Any]) -> list[str]:
        graded, made = self.graded, list[str]()
        if graded is not None:
            if near := graded.near:
                scores = self._names(near, lambda p: f"{graded.right[p]:g}")
                made.append(
                    f"{graded.questions} question{'s' * (graded.questions != 1)} cannot tell {scores} from the best: "
                    "the difference may be chance."
                )
            made += self._cheaper(graded)
        made += [
            f"{self._name(p)} refused {counted(int(self.facts[p]['refused']), 'request')} beyond its context."
            for p in self.policies
            if self.facts[p]["refused"]
        ]
        if not self.repeated and len(self.policies) > 1 and any(self.facts[p][self.time] for p in self.policies):
            made.append("Times are one measurement a policy; --repeats 3 gives medians and ranges.")
        if busy := busy_note(provenance):
            made.append(busy)
        return made

    def _quality(self, best: Sequence[str]) -> str:
        graded = self.graded
        if graded is None:
            return f"accuracy is void, as {self._name(REFERENCE)} itself fails the task" if self.void else ""
        if graded.all_equal:
            return f"all have {graded.score(best[0])} answers right"
        verb = "answer" if len(best) > 1 else "answers"
        return f"{self._names(best)} {verb} best ({graded.score(best[0])} right)"

    def _bytes(self, best: Sequence[str]) -> str:
        held = {p: self.facts[p]["kv_bytes_live"] for p in best if self.facts[p]["kv_bytes_live"]}
        if len(held) < 2:
            return ""
        least = min(held.values())
        ties = [p for p in held if held[p] <= least * (1 + SAME_BYTES_SHARE)]
        if len(ties) == len(held):
            return f"all hold the same KV ({bytes_text(least)})"
        verb = "hold" if len(ties) > 1 else "holds"
        return f"{self._names(ties)} {verb} the least KV ({bytes_text(least)}{self._times(ties[0], 'kv_bytes_live')})"

    def _time(self, best: Sequence[str]) -> str:
        known = [p for p in best if self.facts[p][self.time] is not None]
        if len(known) < 2:
            return ""
        soonest = min(known, key=lambda p: self.facts[p][self.time])
        ties = [p for p in known if self._same_time(soonest, p)]
        when = f" at turn {self.turn}" if self.time == "ttft_last_ms" else ""
        if len(ties) == len(known):
            return f"no time to first token{when} can be told from another"
        ties.sort(key=lambda p: p != soonest)
        verb, what = ("have", "their first tokens") if len(ties) > 1 else ("has", "its first token")
        took = f"{ms_text(self.facts[soonest][self.time])}{self._times(soonest, self.time)}"
        return f"{self._names(ties)} {verb} {what} soonest{when} ({took})"

    def _same_time(self, soonest: str, other: str) -> bool:
        """Ranges of repeats that meet, or single measurements that are near, are no difference."""
        a, b = self.facts[soonest], self.facts[other]
        high, low = a[f"{self.time}_high"], b[f"{self.time}_low"]
        if high is not None and low is not None:
            return bool(low <= high)
        return bool(b[self.time] <= a[self.time] * (1 + SAME_TIME_SHARE))

    def _times(self, policy: str, name: str) -> str:
        """Write `, 0.14 times full's`; nothing where `full` did not run or is meant."""
        whole = self.facts.get(REFERENCE, {}).get(name)
        if not whole or policy == REFERENCE:
            return ""
        return f", {self.facts[policy][name] / whole:.2g} times {self._name(REFERENCE)}'s"

    def _costs_of(self, policy: str) -> list[str]:
        """Return what the one best policy holds and takes."""
        facts, parts = self.facts[policy], []
        if facts["kv_bytes_live"]:
            parts.append(f"it holds {bytes_text(facts['kv_bytes_live'])} of KV")
        if facts[self.time] is not None:
            parts.append(f"has its first token after {ms_text(facts[self.time])}")
        return parts

    def _cheaper(self, graded: Standing) -> list[str]:
        """Return the best of the policies that hold less KV than all of the best ones, where answers differ."""
        held = {p: self.facts[p]["kv_bytes_live"] for p in self.policies if self.facts[p]["kv_bytes_live"]}
        floor = min((held[p] for p in graded.best if p in held), default=0)
        rest = [p for p in held if p not in graded.best and held[p] < floor * (1 - SAME_BYTES_SHARE)]
        if graded.all_equal or not rest:
            return []
        nearest = max(rest, key=lambda p: (graded.right[p], -held[p]))
        return [
            f"With less KV, {self._name(nearest)} comes nearest: {graded.score(nearest)} right with "
            f"{bytes_text(held[nearest])}{self._times(nearest, 'kv_bytes_live')}."
        ]

    def _alone(self, policy: str) -> str:
        facts, parts = self.facts[policy], []
        if self.graded is not None:
            parts.append(f"{self.graded.score(policy)} answers right")
        if facts[self.time] is not None:
            when = f" at turn {self.turn}" if self.time == "ttft_last_ms" else ""
            parts.append(f"the first token{when} after {ms_text(facts[self.time])}")
        if facts["kv_bytes_live"]:
            parts.append(f"{bytes_text(facts['kv_bytes_live'])} of live KV")
        return f"Only {self._name(policy)} ran: {', '.join(parts) or 'nothing was measured'}."

    def _name(self, policy: str) -> str:
        return policy_name(policy, self.labels)

    def _names(self, policies: Sequence[str], about: Callable[[str], str] | None = None) -> str:
        return listed([self._name(p) + (f" ({about(p)})" if about else "") for p in policies])
