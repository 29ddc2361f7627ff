"""``Advice``: which design fits, the numbers that decided it, the ranking, and the line that serves it."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from kvlab.advising.changes import Change
from kvlab.advising.judging import TIE_SHARE, Judged, Ranking
from kvlab.policies import format_bytes
from kvlab.speed import Speed
from kvlab.systems import System, policy_of

COLUMNS = ("", "design", "wait", "again", "after restart", "agents", "memory", "ssd", "note")
MAY_DIFFER = "may differ from those without a cache"
"""What is known of a lossy design where no run has measured what it loses."""


@dataclass(frozen=True)
class Advice:
    """What :func:`kvlab.advise` found. In a notebook it shows itself; ``str`` is the same as text.

    Attributes:
        workload: what it is about, in words.
        ranking: all designs with their numbers.
        changes: what would be chosen under other conditions.
        model: what ``--model`` takes; empty for the bundled one.
        promise: what lossy designs lose at most, in words, where a run has measured it.
    """

    workload: str
    ranking: Ranking
    changes: tuple[Change, ...]
    speed: Speed
    memory: int
    ssd: int
    model: str = ""
    promise: str = ""

    @property
    def choice(self) -> Judged:
        """The design that is advised."""
        found = self.ranking.choice
        if found is None:
            raise AssertionError("advice without a choice is not given")
        return found

    @property
    def policy(self) -> str:
        """Its text, for ``kvlab.compare`` and ``kvlab.serve``; that of a system is read by ``kvlab.System.parse``."""
        return self.choice.name

    @property
    def ties(self) -> tuple[str, ...]:
        """Texts of the designs that are as good, other than the choice."""
        return tuple(one.name for one in self.ranking.ties if one is not self.choice)

    @property
    def serve(self) -> str:
        """The command that serves it."""
        return serve_command(self.choice, self.model)

    @property
    def numbers(self) -> tuple[tuple[str, str], ...]:
        """The three numbers that decided it: what each is, and its value beside that of having no cache."""
        one, none = self.choice, next((o for o in self.ranking.judged if o.name == "full"), None)
        fewer = f", of {none.again:,.0f} without a cache" if none is not None and one is not none else ""
        first = ("known tokens computed again, each request", f"{one.again:,.0f}{fewer}")
        if one.restart_s is not None:
            waits = f", of {_time(none.restart_s)} without a cache" if none is not None and none.restart_s else ""
            second = ("wait for the first token after a restart", f"{_time(one.restart_s)}{waits}")
        else:
            waits = f", of {_time(none.p95_s)} without a cache" if none is not None and one is not none else ""
            second = ("wait that 95 of 100 requests do not exceed", f"{_time(one.p95_s)}{waits}")
        where = format_bytes(self.memory) + (f" and {format_bytes(self.ssd)} of SSD" if one.design.uses_ssd else "")
        return first, second, (f"agents whose KV stays, in {where}", f"{one.agents_that_fit:,}")

    @property
    def table(self) -> list[dict[str, str]]:
        """The ranking as lines of text, the choice marked with ``→`` and ties with ``=``."""
        return [self._line(one) for one in self.ranking.judged]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The ranking as tidy rows."""
        tied = set(self.ties)
        return [
            {
                "policy": one.name,
                "workload": self.workload,
                "metric": metric,
                "value": value,
                "unit": unit,
                "rank": place,
                "chosen": one is self.choice,
                "tied": one.name in tied,
                "fits": one.fits,
                "note": one.why_not,
            }
            for place, one in enumerate(self.ranking.judged, start=1)
            for metric, (value, unit) in one.row().items()
        ]

    @property
    def facts(self) -> dict[str, Any]:
        """What the provenance of the rows says."""
        return {
            "advice": {
                "workload": self.workload,
                "choice": self.policy,
                "serve": self.serve,
                "ties": list(self.ties),
                "decided_by": dict(self.numbers),
                "would_change": {one.condition: one.choice for one in self.changes if one.differs},
                "stays": [one.condition for one in self.changes if not one.differs],
                "memory_bytes": self.memory,
                "ssd_bytes": self.ssd,
                "speed": self.speed.row,
            }
        }

    def frame(self) -> pl.DataFrame:
        """Return the rows as a Polars frame."""
        return pl.DataFrame(self.rows, infer_schema_length=None)

    def chart(self) -> Any:
        """Return the ranking as an Altair chart: the wait under each design that fits."""
        from kvlab.charts.ranking import waits_by_design

        return waits_by_design(self.frame())

    @property
    def sentences(self) -> list[str]:
        """The answer in sentences."""
        tied = f" As good within {TIE_SHARE:.0%}, and less simple: {_listed(self.ties)}." if self.ties else ""
        lossy = f" Its answers {self.promise or MAY_DIFFER}." if self.choice.design.is_lossy else ""
        said = [f"For {self.workload}: {self.policy}.{lossy}{tied}"]
        for one in self.changes:
            if one.differs:
                said.append(f"With {one.condition}: {one.choice or 'nothing that is known here fits'}.")
        if same := [one.condition for one in self.changes if not one.differs]:
            said.append(f"No other kind of design with {_listed(same)}.")
        return said

    def __str__(self) -> str:
        numbers = "\n".join(f"  {value:<36} {what}" for what, value in self.numbers)
        return "\n".join([self.sentences[0], "", numbers, "", *self.sentences[1:], "", f"  {self.serve}"])

    def _repr_html_(self) -> str:
        soft = "opacity:.7;font-size:90%"
        numbers = "".join(
            f"<tr><td style='text-align:left'><b>{html.escape(value)}</b></td>"
            f"<td style='text-align:left'>{html.escape(what)}</td></tr>"
            for what, value in self.numbers
        )
        cells = "".join(
            "<tr>" + "".join(_cell(name, line[name], line[""] == "→") for name in COLUMNS) + "</tr>"
            for line in self.table
        )
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in COLUMNS)
        rest = "".join(f"<div style='{soft}'>{html.escape(one)}</div>" for one in self.sentences[1:])
        return (
            f"<div style='margin:2px 0 8px;max-width:84ch'>{html.escape(self.sentences[0])}</div>"
            f"<table>{numbers}</table>"
            f"{rest}<pre style='margin:8px 0'>{html.escape(self.serve)}</pre>"
            f"<div style='overflow-x:auto'><table><tr>{head}</tr>{cells}</table></div>"
            f"<div style='{soft}'>{html.escape(self.speed.source)}: {1 / self.speed.token_s:,.0f} prompt tokens/s, "
            f"{1 / self.speed.step_s:,.0f} tokens/s, {format_bytes(self.memory)} of memory for KV</div>"
        )

    def _line(self, one: Judged) -> dict[str, str]:
        mark = "→" if one is self.choice else "=" if one.name in self.ties else "✗" if not one.fits else ""
        shown = {
            "": mark,
            "design": one.name,
            "wait": _time(one.wait_s),
            "again": f"{one.again:,.0f}",
            "after restart": "–" if one.restart_s is None else _time(one.restart_s),
            "agents": f"{one.agents_that_fit:,}",
            "memory": _size(one.memory_bytes),
            "ssd": _size(one.ssd_bytes) if one.ssd_bytes else "–",
        }
        return shown | {"note": one.why_not or ("lossy" if one.design.is_lossy else "")}


def serve_command(one: Judged, model: str = "") -> str:
    """Return the ``kvlab serve`` line of a design."""
    candidate = one.design.candidate
    option = "--system" if isinstance(candidate, System) else "--policy"
    parts = ["kvlab", "serve", option, str(candidate if isinstance(candidate, System) else policy_of(candidate))]
    parts += ["--model", model] if model else []
    parts += ["--live-memory", format_bytes(one.design.live_memory)] if one.design.live_memory else []
    return shlex.join(parts)


def _cell(name: str, text: str, bold: bool) -> str:
    shown = f"<code>{html.escape(text)}</code>" if name == "design" else html.escape(text)
    align = "left" if name in ("", "design", "note") else "right"
    return f"<td style='text-align:{align};white-space:nowrap'>{f'<b>{shown}</b>' if bold else shown}</td>"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{1e3 * seconds:,.0f} ms" if seconds < 1 else f"{seconds:,.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def _size(size: int) -> str:
    value, names = float(size), ["B", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(names) > 1:
        value, names = value / 1000, names[1:]
    return f"{value:.3g} {names[0]}"
