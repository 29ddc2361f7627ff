"""A report card as one HTML page, light and dark, told by signs and words as well as by colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kvlab.audit.probe import all_probes
from kvlab.audit.report_card import MARKS, Row, duration_text, summary, value_text
from kvlab.charts.colors import BLUE, GREY, ORANGE, SOFT_INK, Tone
from kvlab.counts import counted
from kvlab.results.paint import paint
from kvlab.results.report_page import STYLE

TONES = {"good": BLUE, "bad": ORANGE, "note": SOFT_INK, "unknown": GREY, "absent": GREY}
"""Blue and orange stay apart for readers who are colour-blind."""

FACTS = ("server", "served_model", "time", "salt", "prompt_size", "tokens_per_word", "reports_cached_tokens", "kvlab")

OWN_STYLE = """
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; }
td, th { padding: 6px 14px 6px 0; vertical-align: top; }
tbody tr + tr td { border-top: 1px solid var(--rule); }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.sign { white-space: nowrap; font-weight: 600; }
.soft { color: var(--soft); }
tr.differs td { font-weight: 600; }
"""


def card_page(document: Mapping[str, Any]) -> str:
    """Return the page of a card; of two cards where its rows were compared with another one's."""
    rows: Sequence[Row] = document["rows"]
    compared = any("differs" in row for row in rows)
    facts = document["provenance"]
    name = escape(str(facts.get("served_model") or "a server"))
    shown = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(str(facts[key]))}</dd>" for key in FACTS if key in facts
    )
    took = f"<p class='soft'>{escape(duration_text(document))}</p>" if duration_text(document) else ""
    about = {"curve": "cold prompts of several lengths"} | {probe.name: probe.about for probe in all_probes()}
    cards = "".join(
        _probe_card(probe, about.get(probe, ""), [row for row in rows if row["probe"] == probe])
        for probe in dict.fromkeys(row["probe"] for row in rows)
    )
    lead = (
        f"{sum(row['differs'] for row in rows)} of {counted(len(rows), 'row')} differ."
        if compared
        else summary(rows) + "."
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Audit of {name}</title><style>{STYLE}{OWN_STYLE}</style></head><body><main>"
        f"<h1>Audit of {name}</h1><p class='lead'>What the KV cache of this server does, seen from outside: {lead}</p>"
        f"{cards}<div class='card'><dl>{shown}</dl>{took}</div></main></body></html>\n"
    )


def _probe_card(probe: str, about: str, rows: Sequence[Row]) -> str:
    """Return one probe: what it found in a table, and the numbers behind it folded away."""
    main = [row for row in rows if "differs" in row or row["means"] or row["verdict"] != "note"]
    others = [row for row in rows if row not in main]
    fold = f"<details class='fold'><summary>Numbers</summary>{_table(others)}</details>" if others else ""
    title = escape(about[:1].upper() + about[1:] if about else probe)
    return f"<h2>{title} <code class='soft'>{escape(probe)}</code></h2><div class='card'>{_table(main)}{fold}</div>"


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    compared = "differs" in rows[0]
    heads = ["", "measured", "", *(["against"] if compared else []), "what it means for an agent"]
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_line, rows))}</tbody></table>"


def _line(row: Row) -> str:
    detail = f"<div class='soft'>{escape(row['detail'])}</div>" if row["detail"] else ""
    against = ""
    if "differs" in row:
        other = f"{MARKS[row['against_verdict']]} {value_text(row['against'], row['unit'])}"
        against = f"<td class='number'>{'≠ ' if row['differs'] else ''}{escape(other)}</td>"
    kind = " class='differs'" if row.get("differs") else ""
    return (
        f"<tr{kind}><td class='sign' style='{paint('color', _tone(row))}'>{MARKS[row['verdict']]} {row['verdict']}</td>"
        f"<td>{escape(row['metric'].replace('_', ' '))}</td>"
        f"<td class='number'>{escape(value_text(row['value'], row['unit']))}</td>{against}"
        f"<td>{escape(row['means'])}{detail}</td></tr>"
    )


def _tone(row: Row) -> Tone:
    return TONES[row["verdict"]]
