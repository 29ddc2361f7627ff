"""Values of requests to the store and of its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kvlab.store.keys import Namespace

OTHER_RANK = "other_rank"
"""Why tokens are computed which another rank of a split model does not have at rest."""


@dataclass(frozen=True)
class Piece:
    """Names one block of a match: its first ``used`` tokens, of ``length`` stored, stand at position ``start``."""

    key: bytes
    start: int
    used: int
    length: int
    tier: str


@dataclass(frozen=True)
class Query:
    """Holds what was asked, so that a read that meets a bad block can ask again."""

    ns: Namespace
    tokens: np.ndarray
    checkpoint: bool


@dataclass(frozen=True)
class Match:
    """Describes the reusable prefix of a request.

    ``tokens`` is its length, ``by_tier`` the same by tier name. ``miss`` says why the rest must be computed: "" when
    all was found, else ``never_seen``, ``evicted``, ``diverged_at=<position>``, ``no_checkpoint``, ``corrupt``,
    ``unreadable``, ``other_rank`` or ``other_policy``. ``checkpoint`` is the key of the state at exactly ``tokens``
    where one was asked for and found.
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
        """Return the match that ``pieces`` make up."""
        by_tier: Counter[str] = Counter()
        for piece in pieces:
            by_tier[piece.tier] += piece.used
        tokens = sum(piece.used for piece in pieces)
        return cls(tokens, tuple(pieces), dict(by_tier), miss, checkpoint, ticket, query)

    def shortened(self, tokens: int) -> Match:
        """Return the first ``tokens`` of the match; all blocks stay pinned until it is read or released."""
        if tokens >= self.tokens:
            return self
        pieces = tuple(
            replace(piece, used=min(piece.used, tokens - piece.start)) for piece in self.pieces if piece.start < tokens
        )
        by_tier: Counter[str] = Counter()
        for piece in pieces:
            by_tier[piece.tier] += piece.used
        return replace(self, tokens=tokens, pieces=pieces, by_tier=dict(by_tier), miss=OTHER_RANK)


@dataclass(frozen=True)
class Put:
    """Counts what a put added: blocks and bytes that were not there before."""

    blocks: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """Holds the outcome of an integrity check: what was checked, and one line for each contradiction."""

    blocks: int
    bytes: int
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems
