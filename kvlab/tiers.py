"""The one list of tiers, from the fastest to the slowest: their names, labels and colours.

Statistics, result rows, recordings, charts and the dashboard read it. A module of the ``tiers`` slot adds to it by
naming a new tier among those that it ``holds``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TierInfo:
    """Describes one tier: ``name`` in keys and columns, ``label`` and ``color`` (`#rrggbb`) in charts."""

    name: str
    label: str
    color: str

    @property
    def metric(self) -> str:
        """Return the metric of result rows that counts this tier's bytes."""
        return f"kv_bytes_{self.name}"


LIVE = TierInfo("live", "live", "#59626f")
RAM = TierInfo("ram", "RAM", "#2f6db5")
SSD = TierInfo("ssd", "SSD", "#1c9a76")

_tiers: dict[str, TierInfo] = {tier.name: tier for tier in (LIVE, RAM, SSD)}


def declare(tier: TierInfo) -> None:
    """Add a tier to the list, as the slowest one; a tier of the same name is replaced."""
    _tiers[tier.name] = tier


def tiers() -> tuple[TierInfo, ...]:
    """Return every tier, ``live`` first."""
    return tuple(_tiers.values())


def tiers_at_rest() -> tuple[TierInfo, ...]:
    """Return the tiers that a store keeps KV in: all but ``live``."""
    return tuple(tier for tier in tiers() if tier is not LIVE)
