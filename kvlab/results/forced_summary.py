"""The summary of teacher-forced workloads: a line a policy, each value with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import polars as pl

from kvlab.errors import RunError
from kvlab.policies import policy_labels
from kvlab.results.intervals import Interval, bootstrap
from kvlab.results.paint import dot
from kvlab.results.rows import TOGETHER


@dataclass(frozen=True)
class ForcedColumn:
    """A column: its heading, the metric and the kind of its rows (None: any), and how a value is written."""

    heading: str
    metric: str
    kind: str | None
    text: Callable[[float], str]


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}" if value < 0.01 else f"{value:.3f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


COLUMNS = (
    ForcedColumn("prose KL", "kl", "prose", _small),
    ForcedColumn("name KL", "kl", "name", _small),
    ForcedColumn("argument KL", "kl", "argument", _small),
    ForcedColumn("prose flips", "tool_flip", "prose", _percent),
    ForcedColumn("name flips", "tool_flip", "name", _percent),
    ForcedColumn("argument flips", "tool_flip", "argument", _percent),
    ForcedColumn("equal calls", "equal_call", None, _percent),
)
"""The columns of workloads that report calls apart from prose."""
WHOLE = (
    ForcedColumn("KL", "kl", None, _small),
    ForcedColumn("top-1", "top1", None, _percent),
    ForcedColumn("perplexity", "perplexity", None, lambda value: f"{value:.4g}"),
)
"""The columns of others."""
UNCACHED = "full"
_LOGARITHMIC = "perplexity"
_SHARES = ("tool_flip", "equal_call", "top1")
_CELL = "padding:3px 11px 3px 0;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"


def is_forced(rows: pl.DataFrame) -> bool:
    """Return whether there are rows of a teacher-forced workload."""
    return not split_forced(rows)[0].is_empty()


def split_forced(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows of teacher-forced workloads, and those of others."""
    found = rows.group_by("workload").agg(pl.col("metric"))
    forced = [name for name, metrics in found.iter_rows() if "kl" in metrics and {"tool_flip", "top1"} & set(metrics)]
    chosen = pl.col("workload").is_in(forced)
    return rows.filter(chosen), rows.filter(~chosen)


def summarize_forced(rows: pl.DataFrame) -> pl.DataFrame:
    """Return ``policy``, ``label``, ``measure`` (a heading), ``metric``, ``kind``, ``value``, ``low``, ``high``,
    ``items``.

    Intervals are 95 %, by bootstrap over items (conversations). Perplexity is a geometric mean. Raises RunError where
    no row is of a teacher-forced workload.
    """
    rows, _ = split_forced(rows)
    if rows.is_empty():
        raise RunError("these rows are not of a teacher-forced workload; run one, such as tools:PATH or kl:FILE")
    own = rows.filter(pl.col("kind").is_null() | (pl.col("kind") != TOGETHER))
    labels = policy_labels(own["policy"].unique(maintain_order=True))
    made = []
    for policy in own["policy"].unique(maintain_order=True):
        of_policy = own.filter(pl.col("policy") == policy)
        for column in COLUMNS if "tool_flip" in set(of_policy["metric"]) else WHOLE:
            found = of_policy.filter(pl.col("metric") == column.metric)
            if column.kind is not None:
                found = found.filter(pl.col("kind") == column.kind)
            if not found.is_empty():
                one = _interval(found, column.metric)
                if policy.split()[0] == UNCACHED:  # its distance from itself is no estimate
                    one = Interval(one.mean, one.mean, one.mean, one.items)
                place = {
                    "policy": policy,
                    "label": labels[policy],
                    "measure": column.heading,
                    "metric": column.metric,
                    "kind": column.kind,
                }
                made.append({**place, "value": one.mean, "low": one.low, "high": one.high, "items": one.items})
    return pl.DataFrame(made)


def forced_text(rows: pl.DataFrame) -> str:
    """Return the summary for a terminal."""
    headings, lines = _lines(rows)
    table = [["policy", *headings], *(line for _, *line in lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    drawn = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in table]
    return "\n".join([drawn[0], "─" * max(map(len, drawn)), *drawn[1:], "", NOTE])


NOTE = (
    "In brackets: 95 % confidence, by bootstrap over items; one item alone has none. "
    "A flip: the most probable token is not that of full."
)


def measure_text(measure: str, value: float) -> str:
    """Write a value of the measure with this heading."""
    return next(column.text for column in (*COLUMNS, *WHOLE) if column.heading == measure)(value)


def forced_html(rows: pl.DataFrame, among: Sequence[str] = ()) -> str:
    """Return the summary as an HTML table.

    `among` are the policies of the whole set that the rows are a part of: names and colours depend on all of them.
    """
    from kvlab.charts.policy_styles import policy_styles  # brings Altair, which takes a moment to import

    headings, lines = _lines(rows)
    styles = policy_styles([*among, *(policy for policy, *_ in lines)])
    left = _CELL.replace("right", "left")
    head = "".join(f"<th style='{_CELL};font-weight:600'>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr><td style='{left}'>{dot(styles[policy].tone)}<code>{escape(styles[policy].label)}</code></td>"
        + "".join(f"<td style='{_CELL}'>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for policy, _, *cells in lines
    )
    return (
        "<table class='kvlab' style='border-collapse:collapse;color:inherit'>"
        "<thead style='border-bottom:1px solid #8886'>"
        f"<tr><th style='{left};font-weight:600'>policy</th>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<div style='opacity:.65;font-size:85%;margin-top:4px'>{escape(NOTE)}</div>"
    )


def _lines(rows: pl.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and a line a policy: its name, its label, then the cells."""
    summary = summarize_forced(rows)
    headings = summary["measure"].unique(maintain_order=True).to_list()
    order = [column.heading for column in (*COLUMNS, *WHOLE) if column.heading in headings]
    text = {column.heading: column.text for column in (*COLUMNS, *WHOLE)}
    lines = []
    for policy in summary["policy"].unique(maintain_order=True):
        found = {r["measure"]: r for r in summary.filter(pl.col("policy") == policy).iter_rows(named=True)}
        cells = [_cell(found.get(heading), text[heading]) for heading in order]
        lines.append([policy, next(iter(found.values()))["label"], *cells])
    return order, lines


def _cell(values: dict[str, float] | None, text: Callable[[float], str]) -> str:
    if values is None:
        return "–"
    if values["low"] == values["high"]:
        return text(values["value"])
    return f"{text(values['value'])} [{text(values['low'])}, {text(values['high'])}]"


def _interval(found: pl.DataFrame, metric: str) -> Interval:
    values, items = found["value"].to_list(), found["conversation"].to_list()
    if metric != _LOGARITHMIC:
        return bootstrap(values, items, share=metric in _SHARES)
    one = bootstrap([math.log(value) for value in values], items)
    return Interval(math.exp(one.mean), math.exp(one.low), math.exp(one.high), one.items)
