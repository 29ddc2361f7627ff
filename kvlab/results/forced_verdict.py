"""One sentence on a teacher-forced run, computed from its rows: which policy stays nearest to ``full``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from kvlab.counts import counted
from kvlab.results.answers import REFERENCE
from kvlab.results.forced_summary import measure_text, summarize_forced
from kvlab.results.wording import bytes_text, listed, policy_name

MEASURES = ("equal calls", "argument flips", "name flips", "prose flips", "KL")
"""What tells how near a policy is: the first of these that was measured."""
MORE_IS_NEARER = ("equal calls",)
ROUNDING = 1e-6
"""Distances that differ by less are equal: float32 sums of a lossless policy differ by as much."""


@dataclass(frozen=True)
class Distance:
    """A policy's distance from ``full`` by one measure, with its interval; `items` is how many it is a mean of."""

    policy: str
    value: float
    low: float
    high: float
    items: int


def distances(rows: pl.DataFrame) -> tuple[str, list[Distance]]:
    """Return the measure that tells how near policies are, and those besides ``full``, the nearest first."""
    summary = summarize_forced(rows)
    measure = next((one for one in MEASURES if one in set(summary["measure"])), "")
    found = [
        Distance(r["policy"], r["value"], r["low"], r["high"], r["items"])
        for r in summary.filter(pl.col("measure") == measure).iter_rows(named=True)
        if r["policy"] != REFERENCE
    ]
    return measure, sorted(found, key=lambda one: one.value, reverse=measure in MORE_IS_NEARER)


def forced_verdict(rows: pl.DataFrame, labels: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the sentence and the notes on it, as Markdown; nothing is said of accuracy, which forced answers lack."""
    measure, found = distances(rows)
    if not found:
        return f"Only {policy_name(REFERENCE, labels)} ran, which is no distance from itself.", []
    said = _Said(rows, labels, measure)
    reference, nearest, farthest = policy_name(REFERENCE, labels), found[0], found[-1]
    if len(found) == 1:
        sentence = f"{said.named([nearest])} is compared with {reference}: {said.about(nearest)}."
    elif _equal(nearest, farthest):
        sentence = (
            f"All {counted(len(found), 'policy', 'policies')} are equally near to {reference} ({said.value(nearest)})."
        )
    else:
        first, last = ([one for one in found if _equal(one, end)] for end in (nearest, farthest))
        ends = f"{said.clause(first, 'nearest')}; {said.clause(last, 'farthest')}"
        sentence = f"Of {counted(len(found), 'policy', 'policies')} compared with {reference}, {ends}."
    return sentence, _notes(found, said)


def _equal(one: Distance, other: Distance) -> bool:
    return abs(one.value - other.value) < ROUNDING


def _notes(found: list[Distance], said: _Said) -> list[str]:
    items = found[0].items
    if items == 1:
        return ["One item has no interval; more of them (n) show how sure this is."]
    nearest = found[0]
    others = [one for one in found if not _equal(one, nearest)]
    near = [one for one in others if one.low <= nearest.high and nearest.low <= one.high]
    if not near:
        return []
    what = "interval" if len(near) == 1 else "intervals"
    verb = "meets" if len(near) == 1 else "meet"
    return [
        f"The 95 % {what} of {said.named(near)} {verb} that of the nearest: "
        f"{counted(items, 'item')} may not tell them apart."
    ]


class _Said:
    """Policies in words, with their measure and what they hold."""

    def __init__(self, rows: pl.DataFrame, labels: Mapping[str, str], measure: str) -> None:
        live = rows.filter((pl.col("metric") == "kv_bytes_live") & pl.col("turn").is_not_null())
        self.held = dict(live.group_by("policy").agg(pl.col("value").mean()).iter_rows())
        self.labels, self.measure = labels, measure

    def named(self, found: list[Distance]) -> str:
        return listed([policy_name(one.policy, self.labels) for one in found])

    def value(self, one: Distance) -> str:
        return f"{self.measure} {measure_text(self.measure, one.value)}"

    def about(self, one: Distance) -> str:
        held = self.held.get(one.policy)
        return f"{self.value(one)}, with {bytes_text(held)} of KV" if held else self.value(one)

    def clause(self, found: list[Distance], place: str) -> str:
        """Write `a` is nearest (KL 0.1, with 3 kB of KV); of several that are equal, the KV is left out."""
        if len(found) == 1:
            return f"{self.named(found)} is {place} ({self.about(found[0])})"
        return f"{self.named(found)} are {place} ({self.value(found[0])})"
