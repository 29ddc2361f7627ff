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

NAME_CHARS = 28
"""Of a card's name in the head of a table."""

TIMED_METRICS = ("inferred_cached_tokens", "computed_before_abort")
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


def card_name(facts: Mapping[str, Any]) -> str:
    """Return what a card is about: the policy or system and the model, as far as its provenance says."""
    told = [facts.get("policy"), facts.get("served_model")]
    return " · ".join(str(part) for part in told if part) or str(facts.get("server") or "a server")


def names_of_two(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return short names of the two cards of a comparison, by what tells them apart."""
    other: Mapping[str, Any] = facts.get("against") or {}
    for key in ("policy", "server", "served_model"):
        one, two = (str(of.get(key) or "") for of in (facts, other))
        if one and two and one != two:
            return shorten(one, NAME_CHARS), shorten(two, NAME_CHARS)
    return "this card", "the other"


def shorten(text: str, most: int) -> str:
    """Return a text of at most so many characters, with a mark where some are missing."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


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
        if matters(row)
    ]


def summary(rows: Sequence[Row]) -> str:
    """Return how many findings there are of each verdict, in one line."""
    counted = Counter(row["verdict"] for row in rows if matters(row))
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
    if str(path).startswith(("http:", "https:")):
        raise AuditError(
            "--against takes a saved card: write kvlab audit URL --json > card.json for one server, and then "
            "kvlab audit URL --against card.json for the other"
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["command"] != "audit":
            raise KeyError("command")
        rows = [_row_of(row) for row in document["rows"]]
        facts = dict(document.get("provenance") or {})
    except OSError as error:
        raise AuditError(f"{path} cannot be read ({error.strerror}); write a file made by kvlab audit --json") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise AuditError(f"{path} is no report card; write a file made by kvlab audit --json") from None
    return dict(document) | {"rows": rows, "provenance": facts}


def _row_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a saved card with all that a row has now. Raises ValueError or KeyError for one that is none."""
    made = {"unit": "", "detail": "", "means": "", **row}
    value = made["value"]
    if made["verdict"] not in MARKS or not (value is None or isinstance(value, int | float)):
        raise ValueError("no row of a card")
    texts = ("probe", "metric", "unit", "detail", "means")
    if not all(isinstance(made[name], str) for name in texts):
        raise ValueError("no row of a card")
    return made


def compare_cards(rows: Sequence[Row], others: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows of both cards, one for each probe and metric, with what the other one has, and ``differs``.

    The other's are ``against``, ``against_verdict``, ``against_detail`` and ``against_means``.

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
                "against_detail": other["detail"] if other else "",
                "against_means": other["means"] if other else "",
                "differs": row is None or other is None or _differ(row, other),
            }
        )
    return made


def matters(row: Row) -> bool:
    """Whether a row says something to its reader: not a number that supports others and is equal in both cards."""
    return bool(row.get("differs") or row["means"] or row["verdict"] != "note")


def comparison_lines(rows: Sequence[Row], names: tuple[str, str]) -> list[dict[str, Any]]:
    """Return the lines of two cards of these names side by side, those that differ marked with ``≠``."""
    return [
        {
            "": "≠" if row["differs"] else "",
            "probe": row["probe"],
            "metric": row["metric"],
            names[0]: f"{MARKS[row['verdict']]} {value_text(row['value'], row['unit'])}",
            names[1]: f"{MARKS[row['against_verdict']]} {value_text(row['against'], row['unit'])}",
            "detail": row["detail"] or row["against_detail"],
        }
        for row in rows
        if matters(row)
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
