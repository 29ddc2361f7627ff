"""Describe a store: its block size, its tiers, and when blocks are written to the tiers below RAM."""

from __future__ import annotations

from dataclasses import dataclass

from kvlab.errors import StoreError
from kvlab.store.protocols import TierConfig
from kvlab.store.replacement import check_replacement

WRITE_MODES = ("back", "through", "snapshot")


@dataclass(frozen=True)
class StoreConfig:
    """Holds the settings of one store. Impossible settings raise ``StoreError``.

    Attributes:
        block: block size in tokens, that of every namespace.
        ram: byte budget of the RAM tier.
        replace: replacement policy of the RAM tier.
        below: the tiers below RAM, from the fastest to the slowest. Each block that is written goes to all of them.
        write: ``back``, ``through`` or ``snapshot``, see ``WriteBehind``.
        admit: uses after which a block may be written to the tiers below.
    """

    block: int
    ram: int
    replace: str = "lru"
    below: tuple[TierConfig, ...] = ()
    write: str = "back"
    admit: int = 1

    def __post_init__(self) -> None:
        if self.block < 1:
            raise StoreError(f"block={self.block} is not a block size; use 1 token or more")
        if self.ram < 0:
            raise StoreError(f"ram={self.ram} is not a budget in bytes; use 0 or more")
        if self.write not in WRITE_MODES:
            raise StoreError(f"write={self.write!r} is not known; use one of {', '.join(WRITE_MODES)}")
        if self.admit < 1:
            raise StoreError(f"admit={self.admit} is not a number of uses; use 1 or more")
        check_replacement(self.replace)
