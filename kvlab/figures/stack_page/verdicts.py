"""Rules that decide a claim on rows, and what they decide: confirmed, dated or contradicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kvlab.figures.stack_page.designs import ARTICLE, KVLAB, NOW, Design, asked_for, of_system
from kvlab.figures.stack_page.measured import MEASURES
from kvlab.figures.stack_page.stack_rows import StackRows
from kvlab.figures.stack_page.standing import DesignOrder

CONFIRMED, DATED, CONTRADICTED, OPEN = "confirmed", "dated", "contradicted", "not measured"
VERDICTS = (CONFIRMED, DATED, CONTRADICTED, OPEN)
ALL_SIX = "all six"
MARKS = {CONFIRMED: "✔", DATED: "◷", CONTRADICTED: "✘", OPEN: "–"}
"""Beside the word, so that a column of verdicts is read at a glance."""


@dataclass(frozen=True)
class Decision:
    """What a rule found of one variant: whether the claim holds there, the number, and the keys of its measures."""

    holds: bool
    shown: str


def six(variant: str) -> list[Design]:
    """Return the six systems in a variant."""
    return [one for one in asked_for() if one.variant == variant and one.name != KVLAB]


class Rule(Protocol):
    """Decides on rows whether a claim holds for a design."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The measures that it reads."""
        ...

    @property
    def wants(self) -> str:
        """What must be so for the claim to hold."""
        ...

    def find(self, rows: StackRows, design: Design) -> Decision | None:
        """Return what the rows say of a design; None where they say nothing."""
        ...


@dataclass(frozen=True)
class Within:
    """A measure of a design, or its ratio to another design's or measure's, lies within bounds.

    Args:
        key: the measure.
        at_most, at_least: the bounds of its median, both included.
        more_than: the same, not included. One of the three, or several.
        over: a second measure of the same design to divide by.
        beside: a system whose measure to divide by, as released or in the claim's variant.
        beside_variant: that variant; empty for the claim's.
    """

    key: str
    at_most: float | None = None
    at_least: float | None = None
    more_than: float | None = None
    over: str = ""
    beside: str = ""
    beside_variant: str = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, self.over) if self.over else (self.key,)

    @property
    def wants(self) -> str:
        bounds = [("at most", self.at_most), ("at least", self.at_least), ("more than", self.more_than)]
        return " and ".join(f"{word} {self._text(bound)}" for word, bound in bounds if bound is not None)

    def find(self, rows: StackRows, design: Design) -> Decision | None:
        sample = MEASURES[self.key].sample(rows, design)
        if sample is None:
            return None
        value = sample.median
        if self.over or self.beside:
            other = of_system(self.beside, self.beside_variant or design.variant) if self.beside else design
            base = MEASURES[self.over or self.key].sample(rows, other)
            if base is None or base.median == 0:
                return None
            value /= base.median
        holds = (
            (self.at_most is None or value <= self.at_most)
            and (self.at_least is None or value >= self.at_least)
            and (self.more_than is None or value > self.more_than)
        )
        return Decision(holds, self._text(value))

    def _text(self, value: float) -> str:
        return f"{value:.2g}×" if self.over or self.beside else MEASURES[self.key].text(value)


@dataclass(frozen=True)
class AllSix:
    """Every one of the six systems in its variant keeps the bounds; shown is the first that does not, or the last."""

    each: Within

    @property
    def keys(self) -> tuple[str, ...]:
        return self.each.keys

    @property
    def wants(self) -> str:
        return f"{self.each.wants}, each"

    def find(self, rows: StackRows, design: Design) -> Decision | None:
        """Return None where one of them has no rows; of `design` only the variant counts."""
        found = {one.name: self.each.find(rows, one) for one in six(design.variant)}
        shown = [f"`{name}` {one.shown}" for name, one in found.items() if one is not None and not one.holds]
        if any(one is None for one in found.values()):
            return None
        return Decision(not shown, ", ".join(shown) or "each of them")


@dataclass(frozen=True)
class FirstOfSix:
    """A system is first, or tied with the first, among the six in its variant."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    @property
    def wants(self) -> str:
        return "first or tied among the six"

    def find(self, rows: StackRows, design: Design) -> Decision | None:
        ranking = DesignOrder.of(MEASURES[self.key], rows, six(design.variant))
        if design not in ranking.samples:
            return None
        own, best = ranking.samples[design].median, ranking.order[0]
        shown = ranking.measure.text(own)
        if best != design:
            shown += f"; `{best.name}` {ranking.measure.text(ranking.samples[best].median)}"
        return Decision(design in ranking.first, shown)


@dataclass(frozen=True)
class ArticleClaim:
    """One thing that the article says of a system.

    Args:
        system: its name, or a word such as "all six".
        says: the claim in kvlab's own words.
        rule: decides it on rows; None where no row can.
        verdict: where no row can decide it, what sources say.
        source: that source, or what else belongs to the number.
    """

    system: str
    says: str
    rule: Rule | None = None
    verdict: str = ""
    source: str = ""


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict, and what was found in each variant."""

    claim: ArticleClaim
    verdict: str
    now: Decision | None = None
    article: Decision | None = None


def judge(claim: ArticleClaim, rows: StackRows | None) -> JudgedClaim:
    """Decide a claim: it holds as released (confirmed), only in the article's variant (dated), or in neither."""
    if claim.rule is None:
        return JudgedClaim(claim, claim.verdict)
    if rows is None:
        return JudgedClaim(claim, OPEN)
    now, article = (
        claim.rule.find(rows, Design("", variant) if claim.system == ALL_SIX else of_system(claim.system, variant))
        for variant in (NOW, ARTICLE)
    )
    if now is None:
        return JudgedClaim(claim, OPEN, now, article)
    if now.holds:
        return JudgedClaim(claim, CONFIRMED, now, article)
    if article is None:
        return JudgedClaim(claim, OPEN, now, article)
    return JudgedClaim(claim, DATED if article.holds else CONTRADICTED, now, article)
