"""The declaration of a figure: its rows, its chart, its claims, and its caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from kvlab.counts import counted
from kvlab.figures.claim import Claim, Verdict
from kvlab.figures.number import Number
from kvlab.figures.saved import Saved


@dataclass(frozen=True)
class Figure:
    """Everything about one figure of the docs.

    Args:
        name: of its files.
        title: its heading.
        experiments: names of the files in ``experiments/`` that give its rows.
        chart: from the saved rows to an Altair chart.
        metrics: the drawn metrics; only rows of these and of its claims' are kept.
        claims: what can be seen in it.
        shows: one or two sentences on how to read it.
        numbers: numbers for the text of README and docs, by name.
    """

    name: str
    title: str
    experiments: tuple[str, ...]
    chart: Callable[[Saved], Any]
    metrics: frozenset[str]
    claims: tuple[Claim, ...]
    shows: str
    numbers: Mapping[str, Number] = field(default_factory=dict)

    def draw(self, saved: Saved) -> Any:
        """Return the chart with a line on its provenance below the title."""
        chart = self.chart(saved)
        title = chart.title
        title.subtitle = [*title.subtitle, origin(saved)]
        return chart

    def judge(self, saved: Saved, *, fresh: bool = False) -> list[Verdict]:
        return [claim.judge(saved.rows, fresh=fresh) for claim in self.claims]

    def needs(self) -> frozenset[str]:
        """Return the metrics whose rows it needs."""
        of_claims, of_numbers = (one.metrics for one in self.claims), (one.metrics for one in self.numbers.values())
        return self.metrics.union(*of_claims, *of_numbers)

    def caption(self, saved: Saved) -> str:
        """Return Markdown: how to read the figure, its claims with measured values, the provenance of the rows."""
        lines = [self.shows, ""]
        lines += [f"- {verdict}" for verdict in self.judge(saved)]
        measured = str(saved.provenance.get("time", ""))[:10]
        made = f"{origin(saved)} · {measured}" if measured else origin(saved)
        if signed := saved.provenance.get("confirmed"):
            made += f" · {confirmed_part(signed)} gave the same at {str(signed['commit'])[:12]}"
        return "\n".join([*lines, "", f"*{made}; {_counted(saved)}.*"])


def origin(saved: Saved) -> str:
    """Return model, machine and commit of the rows, in one line."""
    facts = saved.provenance
    shown = ", ".join(commits_of(facts))
    return f"model {facts.get('model')} ({facts.get('dtype')}) · {facts.get('device')} · commit {shown}"


def confirmed_part(signed: Mapping[str, Any]) -> str:
    """Return how much of an experiment was measured again, such as ``6 of 72 cells``; a script's is counted in rows."""
    what = "cells" if "cells" in signed else "rows"
    return f"{signed[what]} of {signed['of']} {what}"


def commits_of(facts: Mapping[str, Any]) -> list[str]:
    """Return the commits that rows were measured at, as people write them."""
    commits = [str(one) for one in facts.get("commits") or [facts.get("commit")] if one]
    return [f"{one[:12]}{'+dirty' * one.endswith('+dirty')}" for one in commits] or ["of an installed kvlab"]


def _counted(saved: Saved) -> str:
    repeats, seeds = (saved.rows[name].drop_nulls().n_unique() for name in ("repeat", "seed"))
    parts = [counted(n, what) for n, what in ((repeats, "repeat"), (seeds, "seed")) if n]
    return " and ".join(parts) + " of every cell" if parts else "no repeats"


def last_turn(rows: pl.DataFrame) -> int:
    turn: Any = rows["turn"].max()
    return int(turn)
