"""The report card of a server: rows with their provenance, lines for a terminal, and two cards side by side."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvlab.audit.client import AuditClient
from kvlab.audit.errors import AuditError
from kvlab.audit.probe import Lab

Row = Mapping[str, Any]

MARKS = {"good": "✓", "bad": "✗", "note": "•", "unknown": "?", "absent": " "}
"""A sign for each verdict, so that none is told by its colour alone; ``absent``: the other card has it."""

COUNTED_UNITS = ("tokens", "words", "conversations", "requests", "bool", "")
"""Values in these are counts, the same in every run on the same prompts; others are times, or follow from times."""

TIMED_METRICS = ("inferred_cached_tokens",)
INFERRED = "inferred from the TTFT"


def server_facts(client: AuditClient, lab: Lab) -> dict[str, Any]:
    """Return what a card says about its server; no host and no folder, so that a card may be passed on."""
    model = client.model or ""
    return {
        "server": client.server,
        "served_model": Path(model).name if Path(model).is_absolute() else model,
        "salt": lab.material.salt,
        "prompt_size": lab.tokens,
        "tokens_per_word": round(lab.material.tokens_per_word, 3),
        "reports_cached_tokens": lab.reports_cached,
        "probe_seconds": {name: round(seconds, 2) for name, seconds in lab.seconds.items()},
    }


def card_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of a card that say something to its reader: all but the numbers that support others."""
    return [
        {
            "": MARKS[row["verdict"]],
            "verdict": row["verdict"],
            "probe": row["probe"],
            "metric": row["metric"],
            "value": value_text(row["value"], row["unit"]),
            "what it means for an agent": row["means"] or row["detail"],
        }
        for row in document["rows"]
        if row["means"] or row["verdict"] != "note"
    ]


def summary(rows: Sequence[Row]) -> str:
    """Return how many findings there are of each verdict, in one line."""
    counted = Counter(row["verdict"] for row in rows if row["means"] or row["verdict"] != "note")
    return ", ".join(f"{counted[verdict]} {verdict}" for verdict in ("good", "bad", "note", "unknown"))


def duration_text(document: Mapping[str, Any]) -> str:
    """Return how long an audit took and each of its probes, in one sentence; empty where the card does not say."""
    seconds = document["provenance"].get("probe_seconds") or {}
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    each = ", ".join(f"{name} {taken:.0f}" if taken >= 1 else f"{name} {taken:.1f}" for name, taken in longest)
    return f"The audit took {sum(seconds.values()):.0f} s: {each}." if seconds else ""


def value_text(value: float | None, unit: str) -> str:
    """Return a value with its unit; a ratio in percent; a dash for None."""
    if value is None:
        return "–"
    if unit == "ratio":
        return f"{value:.1%}"
    if unit == "bool":
        return "yes" if value else "no"
    digits = f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit.removesuffix('s') if value == 1 and unit in COUNTED_UNITS else unit}".rstrip()


# -- two cards --------------------------------------------------------------------------------------------------------


def load_card(path: Path) -> dict[str, Any]:
    """Return the JSON document of an audit from a file. Raises AuditError for a file that holds none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        rows = document["rows"]
        if document["command"] != "audit" or not all({"probe", "metric", "value", "verdict"} <= set(r) for r in rows):
            raise KeyError("rows")
    except OSError as error:
        raise AuditError(f"{path} cannot be read ({error.strerror}); write a file made by kvlab audit --json") from None
    except (ValueError, KeyError, TypeError):
        raise AuditError(f"{path} is no report card; write a file made by kvlab audit --json") from None
    return dict(document)


def compare_cards(rows: Sequence[Row], others: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of both cards, one for each probe and metric, with ``against``, ``against_verdict``, ``differs``.

    Counts differ where they are not equal. Times, and what is inferred from them, differ by their verdict only, since
    they belong to the machine. A row that one card lacks differs, and is ``absent`` there.
    """
    mine = {(row["probe"], row["metric"]): row for row in rows}
    theirs = {(row["probe"], row["metric"]): row for row in others}
    made = []
    for key in dict.fromkeys([*mine, *theirs]):
        row, other = mine.get(key), theirs.get(key)
        base: Row = row or other or {}
        made.append(
            {
                **base,
                "value": row["value"] if row else None,
                "verdict": row["verdict"] if row else "absent",
                "against": other["value"] if other else None,
                "against_verdict": other["verdict"] if other else "absent",
                "differs": row is None or other is None or _differ(row, other),
            }
        )
    return made


def comparison_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the lines of two cards side by side, those that differ marked with ``≠``."""
    return [
        {
            "": "≠" if row["differs"] else "",
            "probe": row["probe"],
            "metric": row["metric"],
            "this card": f"{MARKS[row['verdict']]} {value_text(row['value'], row['unit'])}",
            "the other": f"{MARKS[row['against_verdict']]} {value_text(row['against'], row['unit'])}",
            "detail": row["detail"],
        }
        for row in rows
    ]


def _differ(row: Row, other: Row) -> bool:
    if row["verdict"] != other["verdict"]:
        return True
    if row["unit"] not in COUNTED_UNITS or row["metric"].endswith(TIMED_METRICS):
        return False
    if INFERRED in row["detail"] or INFERRED in other["detail"]:
        return False
    one, two = row["value"], other["value"]
    if one is None or two is None:
        return one is not two
    return not math.isclose(one, two)
