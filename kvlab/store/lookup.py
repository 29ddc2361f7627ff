"""Find the longest reusable prefix of a request, to the token, over all tiers, without changing anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvlab.store import keys as k
from kvlab.store.ghosts import Ghosts
from kvlab.store.matches import Piece, Query
from kvlab.store.protocols import MissMemory, Tier, TierIndex
from kvlab.store.ram.tier import RamTier

LOOKUP_BATCH_BLOCKS = 256
"""Blocks looked up in a slower tier with one query."""


@dataclass
class Found:
    """Holds the outcome of a lookup: as ``Match``, before anything is pinned."""

    pieces: list[Piece] = field(default_factory=list)
    miss: str = ""
    checkpoint: bytes | None = None
    checkpoint_at: int = 0

    @property
    def tokens(self) -> int:
        return sum(piece.used for piece in self.pieces)


class Lookup:
    """Looks up one request. The caller holds the store's lock."""

    def __init__(self, query: Query, ram: RamTier, tiers: tuple[Tier, ...], ghosts: Ghosts) -> None:
        self.query, self.ram, self.tiers, self.ghosts = query, ram, tiers, ghosts
        self.indexes: tuple[TierIndex, ...] = (ram, *tiers)
        self.ns, self.block = query.ns, query.ns.block
        self.raw = query.tokens.tobytes()
        self.root = self.ns.root()
        self.keys = k.chain_all(self.root, query.tokens, self.block)

    def run(self) -> Found:
        found = Found(self._full_blocks())
        diverged = self._partial_block(found)
        reached = found.tokens
        if reached < len(self.query.tokens):
            found.miss = self._miss_reason(reached, diverged)
        if self.query.checkpoint:
            self._cut_to_checkpoint(found, reached)
        return found

    def full_tokens(self) -> int:
        """Return the length of the prefix that is stored as full blocks."""
        return len(self._full_blocks()) * self.block

    def _full_blocks(self) -> list[Piece]:
        pieces: list[Piece] = []
        below: dict[bytes, str] = {}  # keys looked up in the slower tiers, by the tier that has them
        asked = 0
        for i, key in enumerate(self.keys):
            if key in self.ram:
                tier = self.ram.name
            else:
                if i >= asked:
                    asked = i + LOOKUP_BATCH_BLOCKS
                    below |= self._below([name for name in self.keys[i:asked] if name not in self.ram])
                if key not in below:
                    break
                tier = below[key]
            pieces.append(Piece(key, i * self.block, self.block, self.block, tier))
        return pieces

    def _below(self, keys: list[bytes]) -> dict[bytes, str]:
        where: dict[bytes, str] = {}
        for tier in self.tiers:
            missing = [key for key in keys if key not in where]
            where |= dict.fromkeys(tier.contains(missing), tier.name)
        return where

    def _partial_block(self, found: Found) -> bool:
        """Add the shared part of the next block; return whether earlier KV continues with other tokens there."""
        start = found.tokens
        rest = self.raw[4 * start : 4 * (start + self.block)]
        if not rest:
            return False
        parent = found.pieces[-1].key if found.pieces else self.root
        best: Piece | None = None
        diverged = False
        for tier in self.indexes:
            child = tier.nearest(parent, rest)
            if child is None:
                continue
            used, length = k.common(child.tokens, rest), len(child.tokens) // 4
            if used < min(length, len(rest) // 4) and (used or start):
                diverged = True
            if used > (best.used if best else 0):
                best = Piece(child.key, start, used, length, tier.name)
            if used == len(rest) // 4:
                break
        if best is not None:
            found.pieces.append(best)
            if best.used == min(best.length, len(rest) // 4):
                diverged = False  # a stored block continues like this request, to the end of one of the two
        return diverged

    def _miss_reason(self, reached: int, diverged: bool) -> str:
        start = reached // self.block * self.block
        parent = self.keys[start // self.block - 1] if start else self.root
        name = k.chain(parent, self.raw[4 * start : 4 * (start + self.block)])
        memories: tuple[MissMemory, ...] = (self.ghosts, *self.tiers)
        for memory in memories:
            if reason := memory.eviction_reason(name):
                return reason
        if diverged:
            return f"diverged_at={reached}"
        if not reached:
            head = self.ns.head(self.query.tokens)
            if set[bytes]().union(*(memory.roots_of(head) for memory in memories)) - {self.root}:
                return "other_policy"
        return "never_seen"

    def _cut_to_checkpoint(self, found: Found, reached: int) -> None:
        parents = [self.root, *self.keys[: reached // self.block]]
        has = set[bytes]().union(*(tier.with_checkpoints(parents) for tier in self.indexes))
        for i in range(len(parents) - 1, -1, -1):
            if parents[i] not in has:
                continue
            start = i * self.block
            most = min(self.block - 1, reached - start)
            names = {k.checkpoint_key(parents[i], self.raw[4 * start : 4 * (start + n)]): n for n in range(most + 1)}
            held = set[bytes]().union(*(tier.contains(list(names)) for tier in self.indexes))
            at = [(n, key) for key, n in names.items() if key in held]
            if at:
                n, found.checkpoint = max(at)
                found.checkpoint_at = start + n
                break
        end = found.checkpoint_at
        if end < reached:
            found.miss = "no_checkpoint"
        found.pieces = [_cut(piece, end) for piece in found.pieces if piece.start < end]


def _cut(piece: Piece, end: int) -> Piece:
    return Piece(piece.key, piece.start, min(piece.used, end - piece.start), piece.length, piece.tier)
