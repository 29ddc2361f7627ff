"""Write the tables of docs/calibration.md from the rows: ``python experiments/real_servers/table.py``."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvlab.systems.observations import ObservedSession, Step, read_observations

ROOT = Path(__file__).resolve().parents[2]
ROWS = ROOT / "experiments" / "rows" / "real_servers.csv"
DIFFERENCES = Path(__file__).with_name("differences.toml")
PAGE = ROOT / "docs" / "calibration.md"
MODELS = {
    "word-chain": "Cached tokens with the model of two layers:",
    "smollm2-135m": "The same with SmolLM2-135M's weights:",
    "window-chain": "With layers that see a window of 512 tokens, and prompts that are longer:",
}
DIFFERENCES_OF_PRESETS = "Where kvlab's preset finds another number:"
BEGIN, END = "<!-- from rows: begin -->", "<!-- from rows: end -->"


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), read_observations(ROWS)), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)


def with_tables(page: str, sessions: Sequence[ObservedSession]) -> str:
    """Return the page with its tables made anew. Raises ValueError where it has no place for them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
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
    return "\n\n".join([f"{before}{BEGIN}", *tables, f"{END}{after}"])


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
