"""Protocols between the parts of the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from kvlab.store.blocks import Block, Child
from kvlab.store.keys import Namespace
from kvlab.store.matches import Piece
from kvlab.store.read_buffers import ReadBuffer

IsPinned = Callable[[bytes], bool]
"""Tells whether a block must stay, because it is being read or has descendants in RAM."""

OnDropped = Callable[[bytes, int, str], None]
"""Takes the key, the bytes and the reason (``evicted`` or ``corrupt``) of a block that has left a tier."""


class TierIndex(Protocol):
    """Answers a lookup; every tier does, RAM too. ``name`` is one of ``kvlab.tiers``."""

    name: str

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        """Return those of ``keys`` that can be read."""
        ...

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        """Return the child of ``parent`` that shares the longest prefix with ``tokens``; None where it is not known."""
        ...

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        """Return those of ``parents`` that have a checkpoint under them."""
        ...


class MissMemory(Protocol):
    """Remembers KV that is gone, to say why a request missed."""

    def eviction_reason(self, key: bytes) -> str:
        """Return the reason remembered for a key that left, or ""."""
        ...

    def roots_of(self, head: bytes) -> set[bytes]:
        """Return the namespaces in which a prompt that starts as ``head`` was stored, as far as remembered."""
        ...


class Tier(TierIndex, MissMemory, Protocol):
    """Keeps blocks below RAM. Only ``read`` raises; a tier in trouble finds nothing and takes nothing.

    ``write``, ``note`` and ``sync`` are called by one thread, the writer's; the rest by any.
    """

    def read(self, key: bytes) -> Block:
        """Return the block, verified. Raises ``TierMiss``, or ``TierCorrupt`` once it has been set aside."""
        ...

    def read_to(self, key: bytes, buffer: ReadBuffer) -> Block | None:
        """Do as :meth:`read`, with arrays that may lie in ``buffer`` until it is used again.

        None: the block is the one that ``buffer`` expects, and its arrays went straight to the targets of the sink.
        """
        ...

    def quarantine(self, key: bytes) -> None:
        """Act on a block that is not the one that the index named: one of the two is bad. It is not found again."""
        ...

    def write(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]] = ()) -> set[bytes]:
        """Take blocks in, parents first; return the keys held now: not all when the tier is full or in trouble.

        ``heads`` are pairs for ``roots_of`` to remember.
        """
        ...

    def touch(self, keys: Sequence[bytes]) -> None:
        """Note a use; leaves before heads."""
        ...

    def delete(self, keys: Sequence[bytes]) -> None:
        """Forget blocks."""
        ...

    def nbytes(self) -> int:
        """Return the bytes held now."""
        ...

    def note(self, counters: Mapping[str, int]) -> None:
        """Record postponed uses and deletions, and add to the counters that listings show."""
        ...

    def sync(self) -> bool:
        """Make everything written so far durable; return False when that cannot be promised."""
        ...

    def stats(self) -> dict[str, Any]:
        """Return ``bytes`` and ``blocks`` held now, counters of any name, and ``trouble``, "" where there is none."""
        ...

    def problems(self) -> list[str]:
        """Return what contradicts itself, one line each."""
        ...

    def close(self) -> None:
        """Close files and connections. Idempotent."""
        ...


@runtime_checkable
class TimedTier(Protocol):
    """Is a tier that can say how quick it is before anything is read from it for a request."""

    def timed_read(self, ns: Namespace) -> tuple[int, float] | None:
        """Read one block of the model, policy and dtype of ``ns``, not from the system's memory where it can tell.

        Returns its tokens and the seconds that took; None where there is no such block, or it cannot be read.
        """
        ...


@runtime_checkable
class AwaitedTier(Protocol):
    """Is a tier that may have to be waited for, such as one behind a network."""

    def read_within(self, key: bytes, most_s: float) -> Block:
        """Do as :meth:`Tier.read`; after about ``most_s`` seconds the block is not worth waiting for, and a miss."""
        ...


class Patience(Protocol):
    """Says during the read of a match how long its blocks are worth waiting for."""

    def left_s(self, start: int) -> float:
        """Return the seconds that the block at position ``start`` may be waited for."""
        ...


class ReadWatch(Protocol):
    """Decides during the read of a match how much of it is read."""

    def before(self, pieces: Sequence[Piece]) -> None:
        """Note that the first piece is about to be read below RAM, before the others. Raises ``TierMiss`` to end."""
        ...

    def after(self, tokens: int) -> None:
        """Note that the piece was read, a block of so many tokens."""
        ...


class TierConfig(Protocol):
    """Describes a tier below RAM: a frozen value with what opening it needs."""

    @property
    def name(self) -> str:
        """Return the tier's name, one of ``kvlab.tiers``."""
        ...

    def open(self, *, pinned: IsPinned, dropped: OnDropped) -> Tier:
        """Open the tier for one store. Raises ``StoreError`` where that is impossible."""
        ...
