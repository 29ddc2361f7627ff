"""The tables of the pages: who has which number, who is first, and which rows each number was made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from kvlab.figures.stack_page.claims import CLAIMS
from kvlab.figures.stack_page.designs import ARTICLE, KVLAB, NOW, TITLES, Design, asked_for, of_system
from kvlab.figures.stack_page.measured import BEYOND, MEASURES, OVERFLOW, TABLE
from kvlab.figures.stack_page.measures import Measure, Rows, Sample
from kvlab.figures.stack_page.stack_rows import STACK, StackRows
from kvlab.figures.stack_page.standing import DesignOrder
from kvlab.figures.stack_page.verdicts import ALL_SIX, MARKS, VERDICTS, Decision, JudgedClaim, judge

FIRST = "★"
NOTHING = "–"
SPACE = "\u00a0"
"""One at which a line does not break."""
READ = """```python
import polars as pl

rows = pl.read_csv("experiments/rows/{experiment}.csv", infer_schema_length=None)
```"""
OF_THE_ARTICLE = ("together-8", "in-ram", "waiting", "on-ssd")
"""Measures of what the article's table says in words: batching, KV in memory, KV on SSD. None is better there."""


def main_table(rows: StackRows) -> str:
    """Return the table: a column a system, a row a measure, the released variant above the article's.

    A measure without rows is left out.
    """
    shown = [*(MEASURES[key] for key in OF_THE_ARTICLE), *TABLE]
    lines = []
    for measure in shown:
        ranking = DesignOrder.of(measure, rows)
        if not ranking.samples:
            continue
        page = rows_page(rows.experiment)
        lines.append([f"**{measure.title}**", *(_cell(ranking, name, page) for name in TITLES)])
        if measure.of.workload == OVERFLOW:
            lines.append(["**what it does then**", *(_both(name, lambda one: failure(rows, one)) for name in TITLES)])
    return markdown(["", *TITLES.values()], lines)


def missing(rows: StackRows) -> str:
    """Return a sentence that names the designs without rows; empty where all have some."""
    names = ", ".join(f"`{design}`" for design in rows.missing)
    return f"**Not measured, and so in no place below:** {names}." if names else ""


def claims_table(rows: StackRows | None) -> str:
    """Return every claim with its number, what it wants, and its verdict; and how many there are of each."""
    judged = [judge(claim, rows) for claim in CLAIMS]
    counts = {verdict: sum(one.verdict == verdict for one in judged) for verdict in VERDICTS}
    total = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    page = rows_page(rows.experiment if rows else STACK)
    lines = [
        [_system(one.claim.system), one.claim.says, f"{MARKS[one.verdict]}{SPACE}{one.verdict}", _found(one, page)]
        for one in judged
    ]
    return f"{len(judged)} claims: {total}.\n\n" + markdown(
        ["of", "the article's claim", "verdict", "measured, or read"], lines
    )


def opening_table(rows: StackRows, prefix: str) -> str:
    """Return the short answer: for each question who is first or tied, kvlab's own number, and the last."""
    lines = []
    for key in ("growth", "restart", "p95-8", "speed-8", "sequences", "facts", "written"):
        ranking = DesignOrder.of(MEASURES[key], rows)
        if ranking.samples:
            page = prefix + rows_page(rows.experiment)
            lines.append([_linked(ranking.measure.title, ranking.measure, page), *_ends(ranking)])
    return markdown(["", f"first or tied {FIRST}", "kvlab `tiered`", "last"], lines)


def rows_behind(rows: StackRows) -> str:
    """Return, for each measure with rows, a table of all designs: rows, median, range, and the filters for them."""
    parts = []
    for measure in MEASURES.values():
        ranking = DesignOrder.of(measure, rows)
        if not ranking.samples:
            continue
        lines = [_behind(measure, design, ranking) for design in asked_for()]
        heads = ["design", "median", "least to greatest", "repeats", "rows", "filter"]
        parts.append(f"## {measure.title}\n\n{measure.tells}\n\n{markdown(heads, lines)}")
    return "\n\n".join([READ.format(experiment=rows.experiment), *parts])


def rows_page(experiment: str) -> str:
    """Return the name of the page that has the rows behind the numbers of an experiment."""
    return f"{experiment.replace('_', '-')}-rows.md"


def failure(rows: StackRows, design: Design) -> str:
    """Return what a design does with a conversation that is longer than its context, in a word or two."""
    right = MEASURES["facts"].sample(rows, design)
    if right is None:
        return NOTHING
    refused = _mean(rows, right.candidate, "refused")
    if refused:
        return "refuses" if refused == 1 else f"refuses {refused:.0%}"
    lost = [
        word
        for word, metric in (("cuts", "cut_tokens"), ("shifts", "discarded_tokens"))
        if _mean(rows, right.candidate, metric)
    ]
    if lost:
        return " and ".join(lost)
    return "goes on" if right.median < 1 else "keeps all"


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *lines])


def anchor(title: str) -> str:
    """Return the name that GitHub and MyST give to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def value_text(ranking: DesignOrder, design: Design) -> str:
    """Return a design's number; `–` where there is none."""
    sample = ranking.samples.get(design)
    return ranking.measure.text(sample.median) if sample else NOTHING


def _cell(ranking: DesignOrder, name: str, page: str) -> str:
    def text(design: Design) -> str:
        if design not in ranking.samples:
            return NOTHING
        shown = _linked(value_text(ranking, design).replace(" ", SPACE), ranking.measure, page)
        return f"**{shown}**{SPACE}{FIRST}" if design in ranking.first and not ranking.all_alike else shown

    return _both(name, text)


def _both(name: str, text: Callable[[Design], str]) -> str:
    """Return the texts of both variants, one above the other; of kvlab's own design the only one."""
    if name == KVLAB:
        return text(Design(KVLAB))
    return "<br>".join(text(of_system(name, variant)) for variant in (NOW, ARTICLE))


def _ends(ranking: DesignOrder) -> list[str]:
    own = value_text(ranking, Design(KVLAB)) + (f" {FIRST}" if ranking.kvlab_is_first else "")
    if ranking.all_alike:
        return ["all alike", own, NOTHING]
    best = ", ".join(_names(ranking.first))
    last = ranking.order[-1]
    return [f"{best}: {value_text(ranking, ranking.order[0])}", own, f"`{last}`: {value_text(ranking, last)}"]


def _names(designs: list[Design]) -> list[str]:
    """Return the names of designs; both variants of a system are one name."""
    both = {one.name for one in designs if one.variant == NOW} & {one.name for one in designs if one.variant == ARTICLE}
    shown = [f"`{one.name}` (both)" if one.name in both else f"`{one}`" for one in designs]
    return list(dict.fromkeys(shown))


def _behind(measure: Measure, design: Design, ranking: DesignOrder) -> list[str]:
    sample = ranking.samples.get(design)
    if sample is None:
        return [f"`{design}`", NOTHING, NOTHING, "0", "0", NOTHING]
    mark = f" {FIRST}" if design in ranking.first and not ranking.all_alike else ""
    code = " over ".join(f"`{one}`" for one in sample.code)
    return [f"`{sample.candidate}`", measure.text(sample.median) + mark, _range(measure, sample),
            str(len(sample.values)), str(sample.n_rows), code]  # fmt: skip


def _range(measure: Measure, sample: Sample) -> str:
    ends = dict.fromkeys((measure.text(sample.low), measure.text(sample.high)))
    return " to ".join(ends)


def _found(judged: JudgedClaim, page: str) -> str:
    claim, parts = judged.claim, []
    if claim.rule is not None:
        links = ", ".join(_linked(MEASURES[key].title, MEASURES[key], page) for key in claim.rule.keys)
        parts.append(
            f"{links}: {_shown(judged.now)} as released, {_shown(judged.article)} as described; "
            f"the claim is {claim.rule.wants}"
        )
    return " · ".join([*parts, claim.source] if claim.source else parts)


def _shown(finding: Decision | None) -> str:
    return finding.shown if finding else "not measured"


def _system(name: str) -> str:
    return name if name == ALL_SIX else TITLES[name]


def _linked(text: str, measure: Measure, page: str) -> str:
    return f"[{text}]({page}#{anchor(measure.title)})"


def _mean(rows: StackRows, candidate: str, metric: str) -> float:
    found = Rows(OVERFLOW, metric, {"kind": BEYOND}).by_repeat(rows, candidate)
    return sum(found.values()) / len(found) if found else 0.0
