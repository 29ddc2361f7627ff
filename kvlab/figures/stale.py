"""Stale figures: rows that were made by code of which a part that matters has changed since."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvlab.errors import KvlabError, RunError
from kvlab.figures import saved as rows
from kvlab.figures.figure import Figure, commits_of
from kvlab.figures.relevant_code import changed, relevant_code
from kvlab.figures.source_code import SourceTree

NAMES_SHOWN = 4
"""Most names of changed modules in one line."""


def stale(figures: Sequence[Figure], experiments: Path, folder: Path, source: SourceTree | None = None) -> list[str]:
    """Return a line for each figure whose rows in `folder` other code made, with the command that makes them anew."""
    source = source or SourceTree()
    found = []
    for figure in figures:
        for name in figure.experiments:
            try:
                facts = rows.read(folder, [name]).provenance
            except RunError:
                continue  # `check` says what is wrong with the rows themselves
            try:
                why = reason(facts, relevant_code(experiments / f"{name}.toml", source))
            except KvlabError as error:
                found.append(f"{figure.name}: it cannot be told which code matters to its rows: {error}")
                continue
            if why:
                made = f"the rows of {name} ({', '.join(commits_of(facts))}, {str(facts.get('time', ''))[:10]})"
                again = f"kvlab figures --rerun --only {figure.name}"
                found.append(f"{figure.name}: {made} {why}; make them anew: {again}")
    return found


def reason(facts: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """Return why rows of this provenance are not those of the code now; empty where they are."""
    before = facts.get("code")
    if not isinstance(before, Mapping):
        return "do not say which code made them"
    differing = changed(before, now)
    shown, more = ", ".join(differing[:NAMES_SHOWN]), len(differing) - NAMES_SHOWN
    if not differing:
        return ""
    return f"are older than the code: changed since {'has' if len(differing) == 1 else 'have'} {shown}" + (
        f" and {more} more" if more > 0 else ""
    )
