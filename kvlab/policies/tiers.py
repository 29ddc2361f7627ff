"""Tiers: where KV at rest lives, and who leaves a full tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.policy import Module, Policy
from kvlab.policies.sizes import format_bytes, parse_bytes

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
        dir: the folder; None is ``store`` under KVLAB_HOME.
    """

    name: ClassVar[str] = "tiered"
    ram: str = "1GB"
    ssd: str = "10GB"
    replace: str = "lru"
    write: str = "back"
    dir: str | None = None

    def __post_init__(self) -> None:
        for field in ("ram", "ssd"):
            object.__setattr__(self, field, format_bytes(parse_bytes(getattr(self, field))))
        check_replacement(self.name, self.replace)
        if self.write not in WRITES:
            raise PolicyError(f"tiered: write={self.write} is unknown; write one of {', '.join(WRITES)}")
        if self.dir is not None and any(mark in self.dir for mark in ",|"):
            raise PolicyError(f"tiered: the folder '{self.dir}' has a ',' or '|' in its name; choose another")
