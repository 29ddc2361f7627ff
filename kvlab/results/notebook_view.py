"""Results in a notebook: the verdict, the table, the answers to unfold, and the commands that serve the policies."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import polars as pl

from kvlab.results.promote import serve_line
from kvlab.results.said import AnswerSheet, sheet_html
from kvlab.results.summary import summarize
from kvlab.results.tables import results_html
from kvlab.results.verdict import RunVerdict

_FOLD = "font-size:90%;margin-top:6px"


def notebook_html(
    rows: pl.DataFrame, provenance: Mapping[str, Any], found: RunVerdict | None, sheet: AnswerSheet
) -> str:
    """Return HTML without scripts or style sheets, for light and dark pages."""
    facts = [", ".join(rows["workload"].unique(maintain_order=True).to_list())]
    facts += [f"{name} {provenance[name]}" for name in ("model", "device", "commit") if provenance.get(name)]
    soft = "opacity:.65;font-size:85%;margin-top:4px"
    caption = f"<div style='{soft}'>{escape(' · '.join(facts))}</div>"
    head = f"<div style='margin:2px 0 8px;max-width:84ch'>{found.html()}</div>" if found else ""
    policies = rows["policy"].unique(maintain_order=True).to_list()
    said = sheet_html(sheet, policies)
    answers = f"<details style='{_FOLD}'><summary>What it said</summary>{said}</details>" if said else ""
    lines = "\n".join(serve_line(policy, provenance) for policy in summarize(rows)["policy"])
    promote = (
        f"<details style='{_FOLD}'><summary>Promote a policy to an endpoint</summary>"
        f"<pre style='margin:4px 0'>{escape(lines)}</pre></details>"
    )
    return f"{head}<div style='overflow-x:auto'>{results_html(rows, policies)}</div>{caption}{answers}{promote}"
