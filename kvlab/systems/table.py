"""``SystemTable``: all systems side by side, for terminals and notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from kvlab.policies.slots import format_value
from kvlab.systems.base import System
from kvlab.systems.registry import known_systems

COLUMNS = ("system", "policy", "concurrency", "queue", "prefill", "overflow")
"""Of the short table: of ``overflow``, what becomes of a long prompt and of an answer. ``rows`` have everything."""


class SystemTable(Sequence[System]):
    """Systems, shown as a table; an entry shows its settings with their sources."""

    def __init__(self, systems: Sequence[System]) -> None:
        self._systems = tuple(systems)

    def __getitem__(self, index: Any) -> Any:
        return self._systems[index]

    def __len__(self) -> int:
        return len(self._systems)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All settings of all systems, with their sources: the rows of ``kvlab systems --json``."""
        return [system.row() for system in self._systems]

    @property
    def short_rows(self) -> list[dict[str, str]]:
        """A line for each system: the columns that tell them apart."""
        return [_short(system) for system in self._systems]

    def _repr_html_(self) -> str:
        left = "style='text-align:left'"
        head = "".join(f"<th {left}>{column}</th>" for column in COLUMNS)
        lines = "".join(
            "<tr>" + "".join(f"<td {left}>{html.escape(row[column])}</td>" for column in COLUMNS) + "</tr>"
            for row in self.short_rows
        )
        return f"<table><tr>{head}</tr>{lines}</table>"


def all_systems() -> SystemTable:
    """Return every system in every variant and engine, with the options' defaults."""
    return SystemTable([cls() for cls in known_systems()])


def _short(system: System) -> dict[str, str]:
    config = system.config
    return {
        "system": str(system),
        "policy": str(system.policy),
        "concurrency": str(config.max_concurrency),
        "queue": "no limit" if system.queue is None else str(system.queue),
        "prefill": format_value(config.prefill_step),
        "overflow": f"{config.long_prompt}, {config.overflow}",
    }
