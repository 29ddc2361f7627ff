"""The values that pass through the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kvlab.store.keys import Namespace
from kvlab.store.read_buffers import Payload, ReadBuffer

BLOCK, CHECKPOINT = 0, 1
NUMBERS = "biufc"  # NumPy kinds that can be stored: a file never names an object


@dataclass(frozen=True, eq=False)
class Block:
    """One thing at rest: KV of up to a block of tokens (``kind`` BLOCK), or whole-layer state (``kind`` CHECKPOINT).

    ``tokens`` is little-endian int32; for a checkpoint they are those after the last full block, maybe none.
    ``start`` is the position of the first of them, ``cost`` the seconds that recomputing the block takes, ``used`` when
    it was last used (``time.time()``) and ``uses`` how often, the put included.
    """

    key: bytes
    parent: bytes
    ns: Namespace
    kind: int
    tokens: bytes
    start: int
    cost: float
    payload: Payload
    used: float = 0.0
    uses: int = 1

    @property
    def length(self) -> int:
        return len(self.tokens) // 4

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.payload.values())


@dataclass(frozen=True)
class Child:
    """A block that follows some parent, as an index knows it."""

    key: bytes
    tokens: bytes


@dataclass(frozen=True)
class Piece:
    """One block of a match: its first ``used`` tokens, of ``length`` stored, stand at position ``start``."""

    key: bytes
    start: int
    used: int
    length: int
    tier: str


@dataclass(frozen=True)
class Query:
    """What was asked, kept so that a read that meets a bad block can ask again."""

    ns: Namespace
    tokens: np.ndarray
    checkpoint: bool


@dataclass(frozen=True)
class Match:
    """The reusable prefix of a request.

    ``tokens`` is its length, ``by_tier`` the same by tier name. ``miss`` says why the rest must be computed: "" when
    all was found, else ``never_seen``, ``evicted``, ``diverged_at=<position>``, ``no_checkpoint``, ``corrupt`` or
    ``other_policy``. ``checkpoint`` is the key of the state at exactly ``tokens`` where one was asked for and found.
    """

    tokens: int
    pieces: tuple[Piece, ...] = ()
    by_tier: Mapping[str, int] = field(default_factory=dict)
    miss: str = ""
    checkpoint: bytes | None = None
    ticket: int = field(default=-1, repr=False, compare=False)
    query: Query | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, query: Query, pieces: Sequence[Piece], miss: str, checkpoint: bytes | None, ticket: int) -> Match:
        """The match that ``pieces`` make up."""
        by_tier: Counter[str] = Counter()
        for piece in pieces:
            by_tier[piece.tier] += piece.used
        tokens = sum(piece.used for piece in pieces)
        return cls(tokens, tuple(pieces), dict(by_tier), miss, checkpoint, ticket, query)


@dataclass(frozen=True)
class Put:
    """What a put added: blocks and bytes that were not there before."""

    blocks: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """The outcome of an integrity check: what was looked at, and each thing found wrong in one line."""

    blocks: int
    bytes: int
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


class TierMiss(Exception):
    """A tier does not have the block (any more)."""

    reason = "evicted"


class TierCorrupt(TierMiss):
    """A tier had the block, found it bad and set it aside."""

    reason = "corrupt"


class TierIndex(Protocol):
    """What a lookup asks of every tier, RAM too."""

    name: str

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of ``keys`` that can be read."""
        ...

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        """The child of ``parent`` that shares the longest prefix with ``tokens``; None where that is not known."""
        ...

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        """Those of ``parents`` that have a checkpoint under them."""
        ...


class MissMemory(Protocol):
    """What is known of KV that is not there, to say why a request missed."""

    def eviction_reason(self, key: bytes) -> str:
        """The reason remembered for a key that left, or ""."""
        ...

    def roots_of(self, head: bytes) -> set[bytes]:
        """Namespaces in which a prompt that starts as ``head`` was stored, as far as remembered."""
        ...


class Tier(TierIndex, MissMemory, Protocol):
    """A place for blocks below RAM. Only ``read`` raises; a tier in trouble finds nothing and takes nothing.

    ``write``, ``note`` and ``sync`` are called by one thread, the writer's; the rest by any.
    """

    def read(self, key: bytes) -> Block:
        """The block, verified. Raises ``TierMiss``, or ``TierCorrupt`` once it has been set aside."""
        ...

    def read_to(self, key: bytes, buffer: ReadBuffer) -> Block | None:
        """As :meth:`read`, with arrays that may lie in ``buffer``, until it is used again.

        None: it was what ``buffer`` wants, and its arrays went to the rooms that this has for them.
        """
        ...

    def quarantine(self, key: bytes) -> None:
        """Set a block aside that is not what the index said it was."""
        ...

    def write(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]] = ()) -> set[bytes]:
        """Take blocks in, parents first; the keys that the tier now holds (a subset when it is full or in trouble).

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
        """Bytes held now."""
        ...

    def note(self, counters: Mapping[str, int]) -> None:
        """Write down what was put off (uses, deletions), and add to the counters that listings show."""
        ...

    def sync(self) -> bool:
        """Make what was written durable; False when that cannot be promised."""
        ...

    def stats(self) -> dict[str, Any]:
        """Figures for ``Store.stats``, with ``<name>_bytes`` and ``<name>_blocks`` among them."""
        ...

    def problems(self) -> list[str]:
        """What contradicts itself, one line each."""
        ...

    def close(self) -> None:
        """Let go of files and connections. Idempotent."""
        ...
