"""The CPU time that other programs took while a run was measured, kept in its provenance by policy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kvlab.counts import counted
from kvlab.systems import SYSTEMS

OTHER_LOAD = "other_load"
"""The key in the provenance: for each policy, the share of all CPU time that other programs took, for each repeat."""
BUSY_SHARE = 0.15
"""From this share on, times are longer than on an idle machine by more than they differ by themselves."""


def joined_load(parts: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the shares of several runs together, by policy."""
    joined: dict[str, list[float]] = {}
    for provenance in parts:
        for policy, shares in (provenance.get(OTHER_LOAD) or {}).items():
            joined.setdefault(policy, []).extend(shares)
    return joined


def joined_systems(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of all systems of several runs, by system."""
    return {name: settings for one in parts for name, settings in (one.get(SYSTEMS) or {}).items()}


def busy_note(provenance: Mapping[str, Any]) -> str:
    """Return one sentence where the machine was busy with other programs; empty where it was not, or is not known."""
    load = provenance.get(OTHER_LOAD) or {}
    runs = [share for shares in load.values() for share in shares]
    busy = [share for share in runs if share >= BUSY_SHARE]
    if not busy:
        return ""
    when = "throughout" if len(busy) == len(runs) else f"in {len(busy)} of {counted(len(runs), 'run')}"
    return (
        f"The machine was busy {when}: other programs took up to {max(busy):.0%} of its CPU time, so times may be "
        "longer than on an idle one, and differ by chance."
    )
