"""Tiers: where KV at rest lives, and who leaves a full tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.policy import Policy
from kvlab.policies.sizes import format_bytes, parse_bytes
from kvlab.policies.slots import Module

REPLACEMENTS = ("lru", "lfu", "s3fifo", "sieve", "gdsf", "cost")
WRITES = ("back", "through")


@dataclass(frozen=True)
class Tiers(Module):
    """Base of the modules of this slot: they need a reuse that finds what rests in them."""

    slot: ClassVar[str] = "tiers"

    def check(self, policy: Policy) -> None:
        if policy.reuse.name == "none":
            raise PolicyError(f"'{self}' keeps KV at rest but reuse is 'none': write 'paged|{self}'")


def check_replacement(name: str, replace: str) -> None:
    """Raise PolicyError unless ``replace`` is a replacement policy of the store."""
    if replace not in REPLACEMENTS:
        raise PolicyError(f"{name}: replace={replace} is unknown; known are {', '.join(REPLACEMENTS)}")


@dataclass(frozen=True)
class Ram(Tiers):
    """KV at rest in memory; it is gone with the process.

    Args:
        ram: byte budget, such as 512MB or 2GB.
        replace: replacement policy: lru, lfu, s3fifo, sieve, gdsf, or cost.
    """

    name: ClassVar[str] = "ram"
    ram: str = "1GB"
    replace: str = "lru"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ram", format_bytes(parse_bytes(self.ram)))
        check_replacement(self.name, self.replace)


@dataclass(frozen=True)
class Tiered(Tiers):
    """KV at rest in memory, spilling to an SSD folder that survives a restart.

    Args:
        ram: byte budget in memory.
        ssd: byte budget of the folder.
        replace: replacement policy of both tiers: lru, lfu, s3fifo, sieve, gdsf, or cost.
        write: ``back`` (written behind the decode path) or ``through`` (on disk before the request ends).
        admit: uses after which a block may be written, being computed the first; 2 spares the SSD what is never used
            again.
        daily: most bytes written to the folder on one day (UTC), by all processes together; None is no limit.
        dir: the folder; None is ``store`` under KVLAB_HOME.
    """

    name: ClassVar[str] = "tiered"
    ram: str = "1GB"
    ssd: str = "10GB"
    replace: str = "lru"
    write: str = "back"
    admit: int = 1
    daily: str | None = None
    dir: str | None = None

    def __post_init__(self) -> None:
        check_folder(self)
        if self.write not in WRITES:
            raise PolicyError(f"tiered: write={self.write} is unknown; write one of {', '.join(WRITES)}")
        if self.admit < 1:
            raise PolicyError(f"tiered: admit={self.admit} must be 1 or more uses, being computed the first")
        if self.daily is not None:
            object.__setattr__(self, "daily", format_bytes(parse_bytes(self.daily)))


@dataclass(frozen=True)
class Snapshot(Tiers):
    """KV at rest in memory, written to its folder only when the decoder closes, or on demand (``Store.flush``).

    The next start begins with what was written. A process that is killed loses what came after its last snapshot.

    Args:
        ram: byte budget in memory.
        ssd: byte budget of the folder.
        replace: replacement policy of both tiers: lru, lfu, s3fifo, sieve, gdsf, or cost.
        dir: the folder; None is ``store`` under KVLAB_HOME.
    """

    name: ClassVar[str] = "snapshot"
    ram: str = "1GB"
    ssd: str = "10GB"
    replace: str = "lru"
    dir: str | None = None

    def __post_init__(self) -> None:
        check_folder(self)


def check_folder(tiers: Tiered | Snapshot) -> None:
    """Bring the sizes into their usual form; raise PolicyError for what cannot be."""
    for field in ("ram", "ssd"):
        object.__setattr__(tiers, field, format_bytes(parse_bytes(getattr(tiers, field))))
    check_replacement(tiers.name, tiers.replace)
    if tiers.dir is not None and any(mark in tiers.dir for mark in ",|"):
        raise PolicyError(f"{tiers.name}: the folder '{tiers.dir}' has a ',' or '|' in its name; choose another")
