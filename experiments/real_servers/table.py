"""Write the tables of docs/calibration.md from the rows: ``python experiments/real_servers/table.py``."""

from __future__ import annotations

import csv
import statistics
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvlab.audit.report_card import load_card
from kvlab.systems.observations import ObservedSession, Step, read_observations

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "experiments" / "rows" / "real_servers.csv"
INFERRED = ROOT / "experiments" / "rows" / "inferred_tokens.csv"
CARDS = ROOT / "experiments" / "rows" / "real_server_cards"
DIFFERENCES = Path(__file__).with_name("differences.toml")
PAGE = ROOT / "docs" / "calibration.md"
MODELS = {
    "word-chain": "Cached tokens with the model of two layers:",
    "smollm2-135m": "The same with SmolLM2-135M's weights:",
    "gemma-3-270m": "With the weights of Gemma 3 270M, a model without a chat template:",
    "window-chain": "With layers that see a window of 512 tokens, and prompts that are longer:",
}
DIFFERENCES_OF_PRESETS = "Where kvlab's preset finds another number:"
SHOWN = {
    "vmlx-flipped": (("restart", "cached_tokens"), ("restart", "same_answer")),
    "kvlab-tiered-flipped": (("restart", "cached_tokens"), ("restart", "same_answer")),
    "mlx-lm": (("continuation", "continued"), ("continuation", "alive")),
    "llama-server": (("clients", "at_once_4"), ("clients", "at_once_8"), ("clients", "at_once_32")),
    "vllm-mlx": (("repeat", "cached_tokens"), ("append", "cached_tokens")),
}
"""Findings of each card that the page shows."""

INFERRED_BEGIN, INFERRED_END = "<!-- from inferred: begin -->", "<!-- from inferred: end -->"
CARDS_BEGIN, CARDS_END = "<!-- from cards: begin -->", "<!-- from cards: end -->"
BEGIN, END = "<!-- from rows: begin -->", "<!-- from rows: end -->"


def main() -> None:
    page = with_tables(PAGE.read_text(encoding="utf-8"), read_observations(ROWS))
    PAGE.write_text(with_inferred(with_cards(page)), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


def with_tables(page: str, sessions: Sequence[ObservedSession]) -> str:
    """Return the page with its tables made anew. Raises ValueError where it has no place for them."""
    reporting = [session for session in sessions if any(step.cached is not None for step in session.steps)]
    models = dict.fromkeys(session.facts["model"] for session in reporting)
    asked = [
        part
        for model in models
        for part in (
            MODELS[model],
            requests([session for session in reporting if session.facts["model"] == model]),
        )
    ]
    tables = [servers(sessions), *asked, DIFFERENCES_OF_PRESETS, differences(sessions)]
    return _put_between(page, BEGIN, END, tables)


def with_cards(page: str) -> str:
    """Return the page with what audits of real servers found. Raises ValueError where it has no place for it."""
    rows = []
    for name, shown in SHOWN.items():
        card = load_card(CARDS / f"{name}.json")
        found = {(row["probe"], row["metric"]): row for row in card["rows"]}
        observed = card["provenance"]["observed"]
        for key in shown:
            row = found[key]
            value = "" if row["value"] is None else f"{row['value']:g}"
            rows.append(
                [name, observed["model"], ": ".join(key).replace("_", " "), value, row["verdict"], row["detail"]]
            )
    return _put_between(
        page, CARDS_BEGIN, CARDS_END, [_markdown(["card", "model", "finding", "value", "verdict", "detail"], rows)]
    )


def with_inferred(page: str) -> str:
    """Return the page with cached tokens by TTFT beside those reported. Raises ValueError where it has no place."""
    with INFERRED.open(encoding="utf-8", newline="") as text:
        measured = list(csv.DictReader(text))
    rows = []
    for setup in dict.fromkeys(row["setup"] for row in measured):
        mine = [row for row in measured if row["setup"] == setup]
        for row in mine:
            counts = (row[name] for name in ("prompt_tokens", "reported_tokens", "inferred_tokens"))
            singles = f"{float(row['largest_single_difference']):.1%}"
            rows.append([setup, row["date"], row["case"], *counts, f"{float(row['difference']):.1%}", singles])
        rows.append([setup, "", "mean", "", "", "", f"{mean_difference(mine):.1%}", ""])
    columns = ["observation", "date", "known", "prompt", "reported", "by TTFT", "difference", "largest of one request"]
    return _put_between(page, INFERRED_BEGIN, INFERRED_END, [_markdown(columns, rows)])


def mean_difference(rows: Sequence[Mapping[str, str]]) -> float:
    """Return the mean over cases of the relative difference between inferred and reported tokens."""
    return statistics.fmean(float(row["difference"]) for row in rows)


def _put_between(page: str, begin: str, end: str, parts: Sequence[str]) -> str:
    before, has_begin, rest = page.partition(begin)
    _, has_end, after = rest.partition(end)
    if not has_begin or not has_end:
        raise ValueError(f"the page has no {begin} … {end}")
    return "\n\n".join([f"{before}{begin}", *parts, f"{end}{after}"])


def servers(sessions: Sequence[ObservedSession]) -> str:
    """Return the table of what was run."""
    rows = [
        [session.setup, _code(session.facts["version"]), _code(session.facts["flags"]), session.facts["model"],
         session.facts["date"], str(sum(step.is_request for step in session.steps))]
        for session in sessions
    ]  # fmt: skip
    return _markdown(["observation", "version", "flags", "model", "date", "requests"], rows)


def requests(sessions: Sequence[ObservedSession]) -> str:
    """Return the cached tokens of every request that begins as an earlier one, in each server."""
    found = {session.setup: {(step.scenario, step.step): step for step in session.steps} for session in sessions}
    order = dict.fromkeys(key for steps in found.values() for key, step in steps.items() if step.is_request)
    rows = []
    for key in order:
        cells = [_cell(steps.get(key)) for steps in found.values()]
        if any(cell not in ("", "0", "–") for cell in cells):
            rows.append([f"{key[0].replace('_', ' ')}: {key[1]}", *cells])
    return _markdown(["request", *found], rows)


def differences(sessions: Sequence[ObservedSession]) -> str:
    """Return what kvlab's presets do otherwise, each with its reason."""
    del sessions
    known = read_differences()
    rows = [
        [setup, _code(entry["system"]), ", ".join(one["steps"]), one["reason"]]
        for setup, entry in known.items()
        for one in entry.get("differs", [])
    ]
    return _markdown(["observation", "preset", "requests", "reason"], rows) if rows else "No request differs."


def read_differences(file: Path = DIFFERENCES) -> dict[str, dict[str, Any]]:
    """Return, for each observation, the preset that it is held against and what differs."""
    return tomllib.loads(file.read_text(encoding="utf-8"))


def _cell(step: Step | None) -> str:
    if step is None:
        return ""
    if step.failed:
        return "✗"
    return "–" if step.cached is None else str(step.cached)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
