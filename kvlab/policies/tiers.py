"""Tiers modules: where KV at rest is, and the replacement policy of a full tier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from kvlab.errors import PolicyError
from kvlab.policies.durations import format_seconds, parse_seconds
from kvlab.policies.grammar import is_balanced
from kvlab.policies.policy import Policy
from kvlab.policies.sizes import format_bytes, parse_bytes
from kvlab.policies.slots import Module
from kvlab.remote_urls import url_problem
from kvlab.replacement_names import replacement_names
from kvlab.tiers import RAM, REMOTE, SSD, TierInfo, declare, tiers

WRITE_MODES = ("back", "through")
ALWAYS, AUTO = "always", "auto"
RESTORE_MODES = (ALWAYS, AUTO)


@dataclass(frozen=True)
class Tiers(Module):
    """Base of the modules of this slot, which need a reuse that finds what is stored.

    A subclass says which tiers it ``holds``, from the fastest to the slowest; one that is new is declared by that.
    ``kvlab.store.from_policy`` must know how to open them.
    """

    slot: ClassVar[str] = "tiers"
    holds: ClassVar[tuple[TierInfo, ...]] = ()
    survives_restart: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for tier in cls.holds:
            if tier not in tiers():
                declare(tier)

    def check(self, policy: Policy) -> None:
        if policy.reuse.name == "none":
            raise PolicyError(f"'{self}' keeps KV at rest but reuse is 'none': write 'paged|{self}'")

    def in_folder(self, folder: Path) -> Self:
        """Return this module with its files in ``folder``, unless it has no files or names a folder itself."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if given.get("dir", "no files") is not None:
            return self
        return type(self)(**given | {"dir": str(folder)})


def check_replacement(name: str, replace: str) -> None:
    """Raise PolicyError unless ``replace`` is a replacement policy."""
    known = replacement_names()
    if replace not in known:
        raise PolicyError(f"{name}: replace={replace} is unknown; known are {', '.join(known)}")


@dataclass(frozen=True)
class Ram(Tiers):
    """KV at rest in memory; it is gone with the process.

    Args:
        ram: byte budget, such as 512MB or 2GB.
        replace: replacement policy, such as lru, s3fifo or cost.
    """

    name: ClassVar[str] = "ram"
    holds: ClassVar[tuple[TierInfo, ...]] = (RAM,)
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
        replace: replacement policy of both tiers, such as lru, s3fifo or cost.
        write: ``back`` (written behind the decode path) or ``through`` (on disk before the request ends).
        admit: number of uses after which a block may be written; the computation is the first. With 2, blocks that are
            never used again are not written to the SSD.
        daily: most bytes written to the folder on one day (UTC), by all processes together; None is no limit.
        dir: the folder; None is ``store`` under KVLAB_HOME.
        restore: ``always``, or ``auto``: what is computed sooner than it is read from the folder is computed.
        remote: URL of a Redis or Valkey server or of an object store, which several machines share as a third tier;
            None is no remote. Its password and its key are in KVLAB_REMOTE_PASSWORD and KVLAB_REMOTE_KEY.
        remote_size: bytes that all blocks in the remote may take; None leaves it to the service.
        remote_ttl: time, such as 12h or 7d, after which a block leaves the remote; None is never.
        remote_wait: milliseconds that a lookup may wait for the remote; one that takes longer is left alone.
    """

    name: ClassVar[str] = "tiered"
    holds: ClassVar[tuple[TierInfo, ...]] = (RAM, SSD)
    survives_restart: ClassVar[bool] = True
    ram: str = "1GB"
    ssd: str = "10GB"
    replace: str = "lru"
    write: str = "back"
    admit: int = 1
    daily: str | None = None
    dir: str | None = None
    restore: str = ALWAYS
    remote: str | None = None
    remote_size: str | None = None
    remote_ttl: str | None = None
    remote_wait: int = 50

    def __post_init__(self) -> None:
        check_folder(self)
        check_remote(self)
        if self.write not in WRITE_MODES:
            raise PolicyError(f"tiered: write={self.write} is unknown; write one of {', '.join(WRITE_MODES)}")
        if self.restore not in RESTORE_MODES:
            raise PolicyError(f"tiered: restore={self.restore} is unknown; write one of {', '.join(RESTORE_MODES)}")
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
        replace: replacement policy of both tiers, such as lru, s3fifo or cost.
        dir: the folder; None is ``store`` under KVLAB_HOME.
    """

    name: ClassVar[str] = "snapshot"
    holds: ClassVar[tuple[TierInfo, ...]] = (RAM, SSD)
    survives_restart: ClassVar[bool] = True
    ram: str = "1GB"
    ssd: str = "10GB"
    replace: str = "lru"
    dir: str | None = None

    def __post_init__(self) -> None:
        check_folder(self)


def check_remote(tiered: Tiered) -> None:
    """Normalize what a module says of its remote, which is a tier then. Raises PolicyError."""
    if tiered.remote is None:
        given = [name for name in ("remote_size", "remote_ttl") if getattr(tiered, name) is not None]
        if given or tiered.remote_wait != Tiered.remote_wait:
            raise PolicyError(f"tiered: {(given or ['remote_wait'])[0]} is of a remote; write remote=URL too")
        return
    if problem := url_problem(tiered.remote):
        raise PolicyError(f"tiered: {problem}")
    if any(mark in tiered.remote for mark in ",|") or not is_balanced(tiered.remote):
        raise PolicyError(f"tiered: the remote '{tiered.remote}' has ',', '|' or a single parenthesis; choose another")
    if tiered.remote_wait < 1:
        raise PolicyError(f"tiered: remote_wait={tiered.remote_wait} must be 1 or more milliseconds")
    if tiered.remote_size is not None:
        object.__setattr__(tiered, "remote_size", format_bytes(parse_bytes(tiered.remote_size)))
    if tiered.remote_ttl is not None:
        object.__setattr__(tiered, "remote_ttl", format_seconds(parse_seconds(tiered.remote_ttl)))
    object.__setattr__(tiered, "holds", (*type(tiered).holds, REMOTE))


def check_folder(tiers: Tiered | Snapshot) -> None:
    """Normalize the sizes of a module. Raises PolicyError for an unusable size, replacement policy or folder name."""
    for field in ("ram", "ssd"):
        object.__setattr__(tiers, field, format_bytes(parse_bytes(getattr(tiers, field))))
    check_replacement(tiers.name, tiers.replace)
    if tiers.dir is not None and (any(mark in tiers.dir for mark in ",|") or not is_balanced(tiers.dir)):
        raise PolicyError(
            f"{tiers.name}: the folder '{tiers.dir}' has ',', '|' or a single parenthesis in its name; choose another"
        )
