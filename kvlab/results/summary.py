"""The summary of a run: one line a policy, as a frame, as text, as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import polars as pl

from kvlab.results.promote import serve_line
from kvlab.results.rows import TOGETHER
from kvlab.results.void import valid, void_note

_DOT = "display:inline-block;width:9px;height:9px;border-radius:5px;margin-right:7px"
_NOTE = "margin:6px 0 0;opacity:.75;font-size:90%"
_CELL = "padding:3px 11px 3px 0;text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums"


@dataclass(frozen=True)
class Column:
    """A column of the table: its name in the summary frame, its heading, and how a value is written.

    ``of`` names the summary column whose value is shown after it, as in `8,227 of 8,315`.
    """

    name: str
    heading: str
    text: Callable[[float], str]
    of: str | None = None


def summarize(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row a policy, in the order of the rows; null where something was not measured.

    TTFT at the first, second and last turn and at the first turn after a restart (ms, mean over conversations), cached
    and prompt tokens and live KV bytes at the last turn, tokens/s (median), accuracy (mean), exact (mean); and in 16
    bits the distance of logits from each request alone, with its bound. Void accuracy is left out, and `void` says so.
    """
    distances = rows.filter(pl.col("metric").is_in(["logit_distance", "logit_bound"]))
    rows = rows.filter(pl.col("kind").is_null() | (pl.col("kind") != TOGETHER))
    note = void_note(rows)
    table = rows.select(pl.col("policy").unique(maintain_order=True))
    last = _last_turn(rows)
    ttft = rows.filter(pl.col("metric") == "ttft_ms")
    served = ttft.filter(pl.col("phase").is_null() | (pl.col("phase") != "restart"))
    parts = {
        "ttft_first_ms": _mean(served.filter(pl.col("turn") == 1)),
        "ttft_second_ms": _mean(served.filter((pl.col("turn") == 2) & (pl.col("turn") != last))),
        "ttft_last_ms": _mean(ttft.filter((pl.col("turn") == last) & (pl.col("turn") != 1))),
        "ttft_restart_ms": _mean(ttft.filter(pl.col("phase") == "restart")),
        "prompt_tokens": _mean(_at(rows, "prompt_tokens", last)),
        "cached_tokens": _mean(_at(rows, "cached_tokens", last)),
        "kv_bytes_live": _mean(_at(rows, "kv_bytes_live", last)),
        "tokens_per_s": rows.filter(pl.col("metric") == "tokens_per_s")
        .group_by("policy")
        .agg(pl.col("value").median()),
        "accuracy": _mean(valid(rows).filter(pl.col("metric") == "accuracy")),
        "exact": _mean(rows.filter(pl.col("metric") == "exact")),
        "logit_distance": _mean(distances.filter(pl.col("metric") == "logit_distance")),
        "logit_bound": _mean(distances.filter(pl.col("metric") == "logit_bound")),
    }
    for name, part in parts.items():
        table = table.join(part.rename({"value": name}), on="policy", how="left", maintain_order="left")
    # A policy that is there as a reference only has rows, but no figures of its own to show.
    table = table.filter(~pl.all_horizontal(pl.exclude("policy").is_null()))
    return table.with_columns(pl.lit(last, pl.Int64).alias("turns"), pl.lit(note or None, pl.String).alias("void"))


def columns(summary: pl.DataFrame) -> list[Column]:
    """Return the columns that have something to show."""
    turns: Any = summary["turns"].max()
    every = (
        Column("ttft_first_ms", "TTFT turn 1", _ms),
        Column("ttft_second_ms", "turn 2", _ms),
        Column("ttft_last_ms", f"turn {turns}", _ms),
        Column("ttft_restart_ms", "after restart", _ms),
        Column("cached_tokens", "cached tokens", lambda value: f"{value:,.0f}", of="prompt_tokens"),
        Column("kv_bytes_live", "live KV", bytes_text),
        Column("tokens_per_s", "tokens/s", lambda value: f"{value:,.0f}"),
        Column("accuracy", "accuracy", lambda value: f"{value:.2f}"),
        Column("exact", "exact", lambda value: "yes" if value == 1 else f"{value:.0%}"),
        Column("logit_distance", "logits off", lambda value: f"{value:.3f}", of="logit_bound"),
    )
    return [column for column in every if summary[column.name].null_count() < summary.height]


def text_table(summary: pl.DataFrame) -> str:
    """Return the summary for a terminal."""
    shown = columns(summary)
    lines = [["policy", *(column.heading for column in shown)]]
    lines += [[r["policy"], *(_cell(column, r) for column in shown)] for r in summary.iter_rows(named=True)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    drawn = []
    for first, *others in lines:
        drawn.append("  ".join([first.ljust(widths[0]), *(map(str.rjust, others, widths[1:]))]))
    return "\n".join([drawn[0], "─" * len(drawn[0]), *drawn[1:], *summary["void"].drop_nulls().unique()])


def html_table(rows: pl.DataFrame) -> str:
    """Return the summary as an HTML table, with TTFT by turn drawn small at the end of each line."""
    from kvlab.charts.policy_styles import policy_colors  # brings Altair, which takes a moment to import

    summary = summarize(rows)
    shown = columns(summary)
    colors = policy_colors(summary["policy"].to_list())
    lines = _by_turn(rows)
    top = max((value for line in lines.values() for _, value in line), default=0.0)
    head = "".join(f"<th style='{_CELL};font-weight:600'>{escape(column.heading)}</th>" for column in shown)
    left = _CELL.replace("right", "left")
    body = ""
    for r in summary.iter_rows(named=True):
        color = colors[r["policy"]]
        dot = f"<span style='{_DOT};background:{color}'></span>"
        cells = "".join(f"<td style='{_CELL}'>{escape(_cell(column, r))}</td>" for column in shown)
        spark = f"<td style='{left}'>{sparkline(lines.get(r['policy'], []), color, top)}</td>"
        body += f"<tr><td style='{left}'>{dot}<code>{escape(r['policy'])}</code></td>{cells}{spark}</tr>"
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


def html_summary(rows: pl.DataFrame, provenance: Mapping[str, Any]) -> str:
    """Return HTML for notebooks: the table, one line of provenance, and the command that serves each policy."""
    workloads = ", ".join(rows["workload"].unique(maintain_order=True).to_list())
    facts = [
        f"{workloads}",
        *(f"{name} {provenance[name]}" for name in ("model", "device", "commit") if provenance.get(name)),
    ]
    caption = f"<div style='opacity:.65;font-size:85%;margin-top:4px'>{escape(' · '.join(facts))}</div>"
    lines = "\n".join(serve_line(policy, provenance) for policy in summarize(rows)["policy"])
    promote = (
        "<details style='font-size:85%'><summary>Promote a policy to an endpoint</summary>"
        f"<pre style='margin:4px 0'>{escape(lines)}</pre></details>"
    )
    return f"<div style='overflow-x:auto'>{html_table(rows)}</div>{caption}{promote}"


def sparkline(points: Sequence[tuple[int, float]], color: str, top: float) -> str:
    """Draw `(turn, value)` points as a small inline SVG line; `top` is the value at its upper edge."""
    if len(points) < 2 or top <= 0:
        return ""
    first, last = points[0][0], points[-1][0]
    where = [(3 + 90 * (turn - first) / max(1, last - first), 21 - 18 * value / top) for turn, value in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
    x, y = where[-1]
    return (
        "<svg width='96' height='24' style='vertical-align:middle' role='img' aria-label='TTFT by turn'>"
        f"<polyline points='{line}' fill='none' stroke='{color}' stroke-width='1.6'/>"
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.2' fill='{color}'/></svg>"
    )


def bytes_text(value: float) -> str:
    """Return bytes with a decimal unit: `3.9 MB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min(len(units) - 1, max(0, (len(f"{abs(value):.0f}") - 1) // 3))
    scaled = value / 1000**power
    return f"{scaled:.0f} {units[power]}" if power == 0 or scaled >= 100 else f"{scaled:.1f} {units[power]}"


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _cell(column: Column, values: Mapping[str, Any]) -> str:
    value, whole = values[column.name], values[column.of] if column.of else None
    if value is None:
        return "–"
    return column.text(value) if whole is None else f"{column.text(value)} of {column.text(whole)}"


def _last_turn(rows: pl.DataFrame) -> int | None:
    last: Any = rows["turn"].max()
    return last


def _at(rows: pl.DataFrame, metric: str, turn: int | None) -> pl.DataFrame:
    return rows.filter((pl.col("metric") == metric) & (pl.col("turn") == turn))


def _mean(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("policy").agg(pl.col("value").mean())


def _by_turn(rows: pl.DataFrame) -> dict[str, list[tuple[int, float]]]:
    ttft = rows.filter((pl.col("metric") == "ttft_ms") & pl.col("turn").is_not_null())
    means = ttft.group_by("policy", "turn").agg(pl.col("value").mean()).sort("policy", "turn")
    lines: dict[str, list[tuple[int, float]]] = {}
    for policy, turn, value in means.select("policy", "turn", "value").iter_rows():
        lines.setdefault(policy, []).append((turn, value))
    return lines
