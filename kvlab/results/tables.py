"""The table of results: distances from ``full`` of teacher-forced workloads; times, bytes and accuracy of others."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from kvlab.results.forced_summary import forced_html, forced_text, split_forced
from kvlab.results.summary import html_table, range_note, summarize, text_table

_NOTE = "opacity:.65;font-size:85%;margin-top:6px"


def results_text(rows: pl.DataFrame) -> str:
    """Return the table for a terminal; where workloads of both sorts are among the rows, both tables."""
    forced, others = split_forced(rows)
    tables = [] if others.is_empty() else [text_table(summarize(others))]
    return "\n\n".join([*tables, *([] if forced.is_empty() else [forced_text(forced)])])


def results_html(rows: pl.DataFrame, among: Sequence[str] = ()) -> str:
    """Return the table as HTML, with what its ranges are; `among` are the policies of the whole set."""
    forced, others = split_forced(rows)
    if others.is_empty() and not forced.is_empty():
        return forced_html(forced, among)
    note = range_note(summarize(others), "below it")
    below = f"<div style='{_NOTE}'>{note}</div>" if note else ""
    return html_table(others, among) + below + ("" if forced.is_empty() else forced_html(forced, among))
