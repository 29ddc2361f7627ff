"""A tier, two modules that hold it and a replacement policy, written as a user of kvlab would write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from kvlab.policies import Tiered
from kvlab.policies.tiers import Tiers
from kvlab.store import StoreConfig
from kvlab.store.blocks import Block, Child
from kvlab.store.errors import TierMiss
from kvlab.store.from_policy import store_config
from kvlab.store.protocols import IsPinned, OnDropped, Tier
from kvlab.store.read_buffers import ReadBuffer
from kvlab.store.replacement.lru import Lru
from kvlab.tiers import RAM, SSD, TierInfo

ATTIC = TierInfo("attic", "attic", "#8a5a2b")
SHELVES: dict[str, dict[bytes, Block]] = {}
"""What each attic holds; it outlives the stores, as a server elsewhere would."""


class AtticTier:
    """Keeps everything in a dictionary, in the order of arrival."""

    name = ATTIC.name

    def __init__(self, shelf: str) -> None:
        self.blocks = SHELVES.setdefault(shelf, {})

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        return {key for key in keys if key in self.blocks}

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        children = [block for block in self.blocks.values() if block.parent == parent and block.kind == 0]
        fitting = [block for block in children if tokens.startswith(block.tokens)]
        best = max(fitting, key=lambda block: block.length, default=None)
        return best and Child(best.key, best.tokens)

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        return {block.parent for block in self.blocks.values() if block.kind == 1} & set(parents)

    def eviction_reason(self, key: bytes) -> str:
        return ""

    def roots_of(self, head: bytes) -> set[bytes]:
        return set()

    def read(self, key: bytes) -> Block:
        if key not in self.blocks:
            raise TierMiss("it is not in the attic")
        return self.blocks[key]

    def read_to(self, key: bytes, buffer: ReadBuffer) -> Block | None:
        return self.read(key)

    def quarantine(self, key: bytes) -> None:
        self.delete([key])

    def write(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]] = ()) -> set[bytes]:
        self.blocks |= {block.key: block for block in blocks}
        return {block.key for block in blocks}

    def touch(self, keys: Sequence[bytes]) -> None: ...

    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.blocks.pop(key, None)

    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks.values())

    def note(self, counters: Mapping[str, int]) -> None: ...

    def sync(self) -> bool:
        return True

    def stats(self) -> dict[str, Any]:
        return {"bytes": self.nbytes(), "blocks": len(self.blocks), "bytes_written": self.nbytes()}

    def problems(self) -> list[str]:
        return []

    def close(self) -> None: ...


@dataclass(frozen=True)
class AtticConfig:
    name: ClassVar[str] = ATTIC.name
    shelf: str

    def open(self, *, pinned: IsPinned, dropped: OnDropped) -> Tier:
        return AtticTier(self.shelf)


@dataclass(frozen=True)
class Attic(Tiers):
    """KV at rest in memory and in an attic."""

    name: ClassVar[str] = "attic"
    holds: ClassVar[tuple[TierInfo, ...]] = (RAM, ATTIC)
    shelf: str = "default"


@dataclass(frozen=True)
class Loft(Tiers):
    """A module that no part of the store knows."""

    name: ClassVar[str] = "loft"
    holds: ClassVar[tuple[TierInfo, ...]] = (RAM, ATTIC)


@dataclass(frozen=True)
class SharedTiered(Tiered):
    """A module that the store takes for another one, which holds less."""

    name: ClassVar[str] = "shared_tiered"
    holds: ClassVar[tuple[TierInfo, ...]] = (RAM, SSD, ATTIC)


@store_config.register(Attic)
def _(tiers: Attic, block: int) -> StoreConfig:
    return StoreConfig(block, ram=4 << 20, below=(AtticConfig(tiers.shelf),))


class Mru(Lru):
    """The most recently used leaves first."""

    name = "mru"

    def victim(self, evictable: Any = lambda _: True) -> Any:
        return next((key for key in reversed(self._order) if evictable(key)), None)
