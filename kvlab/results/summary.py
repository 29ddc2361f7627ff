"""The summary of a run: one line a policy, as a frame, as text, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from kvlab.policies.labels import policy_labels
from kvlab.results.paint import dot, paint
from kvlab.results.rows import FRACTION, SAMPLE, TOGETHER, units
from kvlab.results.void import valid, void_note
from kvlab.results.wording import bytes_text

if TYPE_CHECKING:
    from kvlab.charts.colors import Tone

GRADE = "grade_"
"""How the names of the frame's columns begin that hold grades of the user's own."""
PARTS_OF_CALLS = ("tool_call", "argument")
"""Grades of the parts of tool calls: for the rows alone, as two more columns make every agent's table too wide."""
_NOTE = "margin:6px 0 0;opacity:.75;font-size:90%"
_CELL = "padding:3px 11px 3px 0;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"


@dataclass(frozen=True)
class Column:
    """A column of the table: its name in the summary frame, its heading, and how a value is written.

    ``of`` names the summary column whose value is shown after it, as in `8,227 of 8,315`. A column with ``low`` and
    ``high`` beside it in the frame is shown with that range.
    """

    name: str
    heading: str
    number: Callable[[float], str]
    unit: str = ""
    of: str | None = None

    def text(self, values: Mapping[str, Any]) -> str:
        """Write the value of one policy, without its range."""
        value, whole = values[self.name], values[self.of] if self.of else None
        if value is None:
            return "–"
        return f"{self.number(value)}{self.unit}" if whole is None else f"{self.number(value)} of {self.number(whole)}"

    def range(self, values: Mapping[str, Any]) -> str:
        """Write the least and the greatest of the repeats; empty for one measurement."""
        low, high = values.get(f"{self.name}_low"), values.get(f"{self.name}_high")
        return "" if low is None or high is None else f"{self.number(low)}–{self.number(high)}"


def summarize(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row a policy, in the order of the rows; null where something was not measured.

    TTFT at the first, second and last turn and at the first turn after a restart (ms) and tokens/s: medians over
    conversations, then over repeats and seeds, with `_low` and `_high`, the least and the greatest of those, where
    there are several (`samples`). Means of cached and prompt tokens and live KV bytes at the last turn, accuracy, the
    other grades of the answers (`grade_NAME`), exact; and in 16 bits the distance of logits from each request alone,
    with its bound. Where a context limit refused any, how many were `refused` of all requests that it `limited`. Void
    accuracy is left out, and `void` says so.
    """
    distances = rows.filter(pl.col("metric").is_in(["logit_distance", "logit_bound"]))
    rows = rows.filter(pl.col("kind").is_null() | (pl.col("kind") != TOGETHER))
    note = void_note(rows)
    table = rows.select(pl.col("policy").unique(maintain_order=True))
    last = last_turn(rows)
    ttft = rows.filter(pl.col("metric") == "ttft_ms")
    served = ttft.filter(pl.col("phase").is_null() | (pl.col("phase") != "restart"))
    timed = {
        "ttft_first_ms": served.filter(pl.col("turn") == 1),
        "ttft_second_ms": served.filter((pl.col("turn") == 2) & (pl.col("turn") != last)),
        "ttft_last_ms": ttft.filter((pl.col("turn") == last) & (pl.col("turn") != 1)),
        "ttft_restart_ms": ttft.filter(pl.col("phase") == "restart"),
        "tokens_per_s": rows.filter(pl.col("metric") == "tokens_per_s"),
    }
    means = {
        "prompt_tokens": _at(rows, "prompt_tokens", last),
        "cached_tokens": _at(rows, "cached_tokens", last),
        "kv_bytes_live": _at(rows, "kv_bytes_live", last),
        "accuracy": valid(rows).filter(pl.col("metric") == "accuracy"),
        **{f"{GRADE}{name}": rows.filter(pl.col("metric") == name) for name in _other_grades(rows)},
        "exact": rows.filter(pl.col("metric") == "exact"),
        "logit_distance": distances.filter(pl.col("metric") == "logit_distance"),
        "logit_bound": distances.filter(pl.col("metric") == "logit_bound"),
    }
    parts = [
        medians(part).rename({"value": name, "low": f"{name}_low", "high": f"{name}_high"})
        for name, part in timed.items()
    ]
    parts += [_mean(part).rename({"value": name}) for name, part in means.items()]
    parts.append(_refused(rows))
    for part in parts:
        table = table.join(part, on="policy", how="left", maintain_order="left")
    # A policy that is there as a reference only has rows, but no figures of its own to show.
    table = table.filter(~pl.all_horizontal(pl.exclude("policy").is_null()))
    samples = rows.group_by("policy").agg(pl.struct(SAMPLE).n_unique().cast(pl.Int64).alias("samples"))
    return table.join(samples, on="policy", how="left", maintain_order="left").with_columns(
        pl.lit(last, pl.Int64).alias("turns"), pl.lit(note or None, pl.String).alias("void")
    )


def medians(rows: pl.DataFrame, *by: str) -> pl.DataFrame:
    """Return, for each policy (and `by`), the median `value` of the repeats' medians, and their `low` and `high`.

    A repeat and a seed are one sample each, with the median of its rows; `low` and `high` are null for one sample.
    """
    keys = ["policy", *by]
    each = rows.group_by(*keys, *SAMPLE, maintain_order=True).agg(pl.col("value").median())
    several = pl.len() > 1
    return each.group_by(keys, maintain_order=True).agg(
        pl.col("value").median(),
        pl.when(several).then(pl.col("value").min()).alias("low"),
        pl.when(several).then(pl.col("value").max()).alias("high"),
    )


def columns(summary: pl.DataFrame) -> list[Column]:
    """Return the columns that have something to show."""
    turns: Any = summary["turns"].max()
    every = (
        Column("ttft_first_ms", "TTFT turn 1", _ms, " ms"),
        Column("ttft_second_ms", "turn 2", _ms, " ms"),
        Column("ttft_last_ms", f"turn {turns}", _ms, " ms"),
        Column("ttft_restart_ms", "after restart", _ms, " ms"),
        Column("cached_tokens", "cached tokens", _whole, of="prompt_tokens"),
        Column("kv_bytes_live", "live KV", bytes_text),
        Column("tokens_per_s", "tokens/s", _whole),
        Column("accuracy", "accuracy", _share),
        *(Column(name, name.removeprefix(GRADE), _share) for name in summary.columns if name.startswith(GRADE)),
        Column("exact", "exact", lambda value: "yes" if value == 1 else f"{value:.0%}"),
        Column("refused", "refused", _whole, of="limited"),
        Column("logit_distance", "logits off", lambda value: f"{value:.3f}", of="logit_bound"),
    )
    return [column for column in every if summary[column.name].null_count() < summary.height]


def text_table(summary: pl.DataFrame) -> str:
    """Return the summary for a terminal, each policy by its shortest distinct name."""
    labels = policy_labels(summary["policy"])
    shown = columns(summary)
    lines = [["policy", *(column.heading for column in shown)]]
    for r in summary.iter_rows(named=True):
        spans = {column: f" ({column.range(r)})" if column.range(r) else "" for column in shown}
        lines.append([labels[r["policy"]], *(f"{column.text(r)}{spans[column]}" for column in shown)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = []
    for first, *others in lines:
        drawn.append("  ".join([first.ljust(widths[0]), *(map(str.rjust, others, widths[1:]))]))
    return "\n".join([drawn[0], "─" * len(drawn[0]), *drawn[1:], *notes(summary)])


def notes(summary: pl.DataFrame) -> list[str]:
    """Return what is said below the table: what a range is, and which accuracy is void."""
    note = range_note(summary)
    return [*([note] if note else []), *summary["void"].drop_nulls().unique()]


def range_note(summary: pl.DataFrame, where: str = "in brackets") -> str:
    """Return the line that says what a range is, and `where` it stands; empty where there is none."""
    most: Any = summary["samples"].max()
    if not any(column.range(r) for column in columns(summary) for r in summary.iter_rows(named=True)):
        return ""
    return f"Times: the median of {most} measurements, {where} the least and the greatest."


def html_table(rows: pl.DataFrame, among: Sequence[str] = ()) -> str:
    """Return the summary as an HTML table, with TTFT by turn drawn small at the end of each line.

    `among` are the policies of the whole set that the rows are a part of: names and colours depend on all of them.
    """
    from kvlab.charts.policy_styles import policy_styles  # brings Altair, which takes a moment to import

    summary = summarize(rows)
    shown = columns(summary)
    styles = policy_styles([*among, *summary["policy"]])
    lines = _by_turn(rows)
    top = max((value for line in lines.values() for _, value in line), default=0.0)
    head = "".join(f"<th style='{_CELL};font-weight:600'>{escape(column.heading)}</th>" for column in shown)
    left = _CELL.replace("right", "left")
    body = ""
    for r in summary.iter_rows(named=True):
        style = styles[r["policy"]]
        cells = "".join(f"<td style='{_CELL}'>{_cell_html(column, r)}</td>" for column in shown)
        spark = f"<td style='{left}'>{sparkline(lines.get(r['policy'], []), style.tone, top)}</td>"
        body += f"<tr><td style='{left}'>{dot(style.tone)}<code>{escape(style.label)}</code></td>{cells}{spark}</tr>"
    last = (
        f"<th style='{left};font-weight:600'>TTFT by turn</th>"
        if any(len(line) > 1 for line in lines.values())
        else "<th></th>"
    )
    return (
        "<table class='kvlab' style='border-collapse:collapse;color:inherit'>"
        "<thead style='border-bottom:1px solid #8886'>"
        f"<tr><th style='{left};font-weight:600'>policy</th>{head}{last}</tr></thead><tbody>{body}</tbody></table>"
        + "".join(f"<p style='{_NOTE}'>{escape(note)}</p>" for note in summary["void"].drop_nulls().unique())
    )


def sparkline(points: Sequence[tuple[int, float]], tone: Tone, top: float) -> str:
    """Draw `(turn, value)` points as a small inline SVG line; `top` is the value at its upper edge."""
    if len(points) < 2 or top <= 0:
        return ""
    first, last = points[0][0], points[-1][0]
    where = [(3 + 90 * (turn - first) / max(1, last - first), 21 - 18 * value / top) for turn, value in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
    x, y = where[-1]
    return (
        "<svg width='96' height='24' style='vertical-align:middle' role='img' aria-label='TTFT by turn'>"
        f"<polyline points='{line}' style='fill:none;{paint('stroke', tone)}' stroke-width='1.6'/>"
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.2' style='{paint('fill', tone)}'/></svg>"
    )


def _cell_html(column: Column, values: Mapping[str, Any]) -> str:
    span = column.range(values)
    below = f"<div style='font-size:82%;opacity:.65'>{escape(span)}</div>" if span else ""
    return f"{escape(column.text(values))}{below}"


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def last_turn(rows: pl.DataFrame) -> int | None:
    """Return the number of the last turn; None where rows have no turns."""
    last: Any = rows["turn"].max()
    return last


def _other_grades(rows: pl.DataFrame) -> list[str]:
    """Return the names of grades beside the one that is the accuracy, too."""
    graded = rows.filter((pl.col("unit") == FRACTION) & pl.col("turn").is_not_null())
    known = {*units(), *PARTS_OF_CALLS}
    means = graded.group_by("metric", "policy", maintain_order=True).agg(pl.col("value").mean().round(9))
    by_name = {name: dict(part.select("policy", "value").iter_rows()) for (name,), part in means.group_by("metric")}
    names = [name for name in graded["metric"].unique(maintain_order=True) if name not in known]
    return [name for name in names if by_name[name] != by_name.get("accuracy")]


def _refused(rows: pl.DataFrame) -> pl.DataFrame:
    """Return how many requests of each policy were `refused`, of those `limited`; no rows where none was refused."""
    said = rows.filter(pl.col("metric") == "refused")
    counts = said.group_by("policy").agg(pl.col("value").sum().alias("refused"), pl.len().alias("limited"))
    return counts if counts["refused"].sum() else counts.clear()


def _at(rows: pl.DataFrame, metric: str, turn: int | None) -> pl.DataFrame:
    return rows.filter((pl.col("metric") == metric) & (pl.col("turn") == turn))


def _mean(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("policy").agg(pl.col("value").mean())


def _by_turn(rows: pl.DataFrame) -> dict[str, list[tuple[int, float]]]:
    ttft = rows.filter((pl.col("metric") == "ttft_ms") & pl.col("turn").is_not_null())
    found = medians(ttft, "turn").sort("policy", "turn")
    lines: dict[str, list[tuple[int, float]]] = {}
    for policy, turn, value in found.select("policy", "turn", "value").iter_rows():
        lines.setdefault(policy, []).append((turn, value))
    return lines
