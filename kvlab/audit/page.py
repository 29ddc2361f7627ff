"""A report card as one HTML page, light and dark, told by signs and words as well as by colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from kvlab.audit.probe import all_probes
from kvlab.audit.report_card import MARKS, Row, card_name, duration_text, matters, names_of_two, summary, value_text
from kvlab.charts.colors import BLUE, GREY, ORANGE, SOFT_INK, Tone
from kvlab.counts import counted
from kvlab.results.paint import paint
from kvlab.results.report_page import STYLE

TONES = {"good": BLUE, "bad": ORANGE, "note": SOFT_INK, "unknown": GREY, "absent": GREY}
"""Blue and orange stay apart for readers who are colour-blind."""

FACTS = (
    "policy",
    "server",
    "served_model",
    "time",
    "salt",
    "prompt_size",
    "tokens_per_word",
    "reports_cached_tokens",
    "kvlab",
)

OWN_STYLE = """
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 600; }
td, th { padding: 6px 14px 6px 0; vertical-align: top; }
tbody tr + tr td { border-top: 1px solid var(--rule); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.sign { white-space: nowrap; font-weight: 600; }
.soft { color: var(--soft); }
tr.differs td:not(.means) { font-weight: 600; }
@media (max-width: 640px) {
  thead { display: none; }
  tr { display: grid; grid-template-columns: auto 1fr auto; column-gap: 12px; padding: 8px 0; }
  tbody tr + tr { border-top: 1px solid var(--rule); }
  td { padding: 0; border: 0 !important; }
  td.means, .two td.number { grid-column: 1 / -1; }
  .two td.number { text-align: left; white-space: normal; }
  .two td.number::before { content: attr(data-of) ": "; color: var(--soft); font-weight: 400; }
}
"""


def card_page(document: Mapping[str, Any]) -> str:
    """Return the page of a card; of two cards where its rows were compared with another one's."""
    rows: Sequence[Row] = document["rows"]
    compared = any("differs" in row for row in rows)
    facts = document["provenance"]
    names = names_of_two(facts) if compared else None
    name = escape(f"{names[0]} beside {names[1]}" if names else card_name(facts))
    shown = "".join(
        f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(str(facts[key]))}</dd>" for key in FACTS if key in facts
    )
    took = f"<p class='soft'>{escape(duration_text(document))}</p>" if duration_text(document) else ""
    about = {"curve": "cold prompts of several lengths"} | {probe.name: probe.about for probe in all_probes()}
    cards = "".join(
        _probe_card(probe, about.get(probe, ""), [row for row in rows if row["probe"] == probe], names)
        for probe in dict.fromkeys(row["probe"] for row in rows)
    )
    lead = f"What the KV cache of this server does, seen from outside: {summary(rows)}."
    if names:
        differing = sum(row["differs"] for row in rows)
        lead = f"What two KV caches do, seen from outside: {differing} of {counted(len(rows), 'row')} differ (≠)."
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Audit of {name}</title><style>{STYLE}{OWN_STYLE}</style></head><body><main>"
        f"<h1>Audit of {name}</h1><p class='lead'>{lead}</p>"
        f"{cards}<div class='card'><dl>{shown}</dl>{took}</div></main></body></html>\n"
    )


def _probe_card(probe: str, about: str, rows: Sequence[Row], names: tuple[str, str] | None) -> str:
    """Return one probe: what it found in a table, and the numbers behind it folded away."""
    main = [row for row in rows if matters(row)]
    others = [row for row in rows if not matters(row)]
    fold = f"<details class='fold'><summary>Numbers</summary>{_table(others, names)}</details>" if others else ""
    title = escape(about[:1].upper() + about[1:] if about else probe)
    return (
        f"<h2>{title} <code class='soft'>{escape(probe)}</code></h2><div class='card'>{_table(main, names)}{fold}</div>"
    )


def _table(rows: Sequence[Row], names: tuple[str, str] | None) -> str:
    """Return the rows as a table; ``names`` are those of the two cards of a comparison."""
    if not rows:
        return ""
    numbers = "".join(f"<th class='number'>{escape(name)}</th>" for name in names or ("",))
    head = f"<th></th><th>measured</th>{numbers}<th>what it means for an agent</th>"
    lines = "".join(_line(row, names) for row in rows)
    kind = " class='two'" if names else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _line(row: Row, names: tuple[str, str] | None) -> str:
    value = escape(value_text(row["value"], row["unit"]))
    if names is None:
        numbers = f"<td class='number'>{value}</td>"
    else:
        other = f"{MARKS[row['against_verdict']]} {value_text(row['against'], row['unit'])}"
        mark = "≠ " if row["differs"] else ""
        numbers = (
            f"<td class='number' data-of='{escape(names[0])}'>{value}</td>"
            f"<td class='number' data-of='{escape(names[1])}'>{mark}{escape(other)}</td>"
        )
    kind = " class='differs'" if row.get("differs") else ""
    return (
        f"<tr{kind}><td class='sign' style='{paint('color', _tone(row))}'>{MARKS[row['verdict']]} {row['verdict']}</td>"
        f"<td>{escape(row['metric'].replace('_', ' '))}</td>{numbers}<td class='means'>{_meaning(row, names)}</td></tr>"
    )


def _meaning(row: Row, names: tuple[str, str] | None) -> str:
    """Return what a row means, and where two cards judge otherwise, what the other one says."""
    detail = f"<div class='soft'>{escape(row['detail'])}</div>" if row["detail"] else ""
    own = f"{escape(row['means'])}{detail}"
    if names is None or row["verdict"] == row["against_verdict"] or not row["against_means"]:
        return own
    return f"{own if row['verdict'] != 'absent' else ''}<div>{escape(names[1])}: {escape(row['against_means'])}</div>"


def _tone(row: Row) -> Tone:
    return TONES[row["verdict"]]
