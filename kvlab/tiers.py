"""The one list of tiers, from the fastest to the slowest: their names, labels and colours.

Statistics, result rows, recordings, charts and the dashboard read it. A module of the ``tiers`` slot adds to it by
naming a new tier among those that it ``holds``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

METRIC_PREFIX = "kv_bytes_"
"""How the metrics of result rows that count the bytes of a tier begin."""


@dataclass(frozen=True)
class TierInfo:
    """Describes one tier: ``name`` in keys and columns, ``label`` and ``color`` (`#rrggbb`) in charts.

    A colour must stand out from light pages and from dark ones.
    """

    name: str
    label: str
    color: str

    @property
    def metric(self) -> str:
        """Return the metric of result rows that counts this tier's bytes."""
        return METRIC_PREFIX + self.name


LIVE = TierInfo("live", "live", "#7d8590")
RAM = TierInfo("ram", "RAM", "#2f86ea")
SSD = TierInfo("ssd", "SSD", "#297b5c")
REMOTE = TierInfo("remote", "remote", "#8a5fc7")
"""Shown only where a store holds it: rows of other policies say nothing of a remote."""

UNDECLARED_COLOR = "#999120"
"""The colour of a tier that a recording names and this process has not declared."""

_tiers: dict[str, TierInfo] = {tier.name: tier for tier in (LIVE, RAM, SSD, REMOTE)}


def declare(tier: TierInfo) -> None:
    """Add a tier to the list, as the slowest one; a tier of the same name is replaced."""
    _tiers[tier.name] = tier


def tiers() -> tuple[TierInfo, ...]:
    """Return every tier, ``live`` first."""
    return tuple(_tiers.values())


def tiers_at_rest(held: Iterable[str] = ()) -> tuple[TierInfo, ...]:
    """Return RAM and SSD, which every table shows, and the other tiers named in ``held``, the fastest first."""
    return tuple(tier for tier in tiers_named([RAM.name, SSD.name, *held]) if tier is not LIVE)


def tiers_named(names: Iterable[str]) -> tuple[TierInfo, ...]:
    """Return the tiers of these names, in the order of the list; those that are not on it come last."""
    wanted = dict.fromkeys(names)
    known = tuple(tier for tier in tiers() if tier.name in wanted)
    others = [name for name in wanted if name not in _tiers]
    return (*known, *(TierInfo(name, name, UNDECLARED_COLOR) for name in others))


def tiers_measured(metrics: Iterable[str]) -> tuple[TierInfo, ...]:
    """Return the tiers at rest whose bytes are among these metrics, also those that are not on the list."""
    names = (metric.removeprefix(METRIC_PREFIX) for metric in metrics if metric.startswith(METRIC_PREFIX))
    return tuple(tier for tier in tiers_named(names) if tier is not LIVE)
