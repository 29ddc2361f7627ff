"""``ReplayTier``: the live store's RAM tier, fed with blocks that have sizes and no arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any

from kvlab.replay.orders import TraceClock, order_for
from kvlab.replay.sized_block import SizedBlock
from kvlab.store.blocks import CHECKPOINT, estimated_cost
from kvlab.store.keys import Namespace
from kvlab.store.pins import Pins
from kvlab.store.ram.insertion import RamInserter
from kvlab.store.ram.tier import RamEntry, RamTier
from kvlab.store.replacement import Replacement
from kvlab.store.stats import StoreStats

KEY_BYTES = 4
"""Bytes of a key: the number of the block."""
Chains = Callable[[], Iterable[Iterable[int]]]


class ReplayTier:
    """Looks up and inserts chains in a ``RamTier`` with the store's own ``RamInserter``.

    The chain of a request stays from its lookup to its end. Deviations from a store's RAM tier: keys are numbers
    instead of hashes; blocks enter as checkpoints do, which have parents and sizes but no index by tokens, so that a
    partial block is not dropped when a longer one covers it; a request's own chain also stays while its blocks enter.

    Args:
        capacity: in the unit of ``sizes``.
        replace: name of a replacement policy of the store.
        parents: the parent of each block, -1 for first blocks.
        sizes: the size of each block.
        depths: the place of each block in its chain.
        block_tokens: tokens of a full block.
        chains: returns the chains of all requests, for a policy that knows the future.
    """

    def __init__(
        self,
        capacity: int,
        replace: str,
        *,
        parents: Sequence[int],
        sizes: Sequence[int],
        depths: Sequence[int],
        block_tokens: int,
        chains: Chains = tuple,
    ) -> None:
        self._parents, self._sizes, self._depths = parents, sizes, depths
        self._block_tokens = block_tokens
        self._space = Namespace("replay", "", "", block_tokens)
        self._made: dict[int, SizedBlock] = {}
        self._root = self._space.root()
        self._pinned: frozenset[bytes] = frozenset()
        self.evictions = self.evicted = self.insertions = self.inserted = 0
        self._clock = TraceClock()
        self._stats = StoreStats(self._count)
        order = order_for(replace, capacity, self._clock, lambda: ([_key(one) for one in chain] for chain in chains()))
        self._ram = _OrderedRam(capacity, order, self._pinned_now)
        self._inserter = RamInserter(self._ram, (), None, self._stats, Pins())

    @property
    def held(self) -> int:
        """The size of all resident blocks together."""
        return self._ram.held

    def __len__(self) -> int:
        return len(self._ram)

    def __contains__(self, block: int) -> bool:
        return _key(block) in self._ram

    def start(self, chain: Sequence[int], now: float = 0.0) -> int:
        """Find the resident prefix of a chain, touch it from leaf to head, and pin the chain; return its blocks.

        Blocks whose time has come by ``now``, in seconds, have left before.
        """
        self._clock.begin(now)
        for entry in self._ram.take_expired():
            self._stats.left(entry.block.key, entry.nbytes, "evicted")
        keys = [_key(block) for block in chain]
        found = sum(1 for _ in takewhile(self._ram.__contains__, keys))
        self._pinned = frozenset(keys)
        for key in reversed(keys[:found]):
            self._ram.touch(key)
        return found

    def end(self, chain: Sequence[int], found: int) -> None:
        """Insert what was missing of a chain, parents first, as far as there is space, and unpin the chain."""
        if found < len(chain):
            self._inserter.add([self._block(block) for block in chain[found:]])
        self._pinned = frozenset()

    def problems(self) -> list[str]:
        """Return what contradicts itself: a child without its parent, or more than the capacity."""
        found = []
        if self._ram.held > self._ram.budget and len(self._ram) > 1:
            found.append(f"the tier holds {self._ram.held}, more than its {self._ram.budget}")
        for entry in self._ram:
            if entry.block.parent != self._root and entry.block.parent not in self._ram:
                found.append(f"block {int.from_bytes(entry.block.key, 'big')} is resident without its parent")
        return found

    def _block(self, block: int) -> SizedBlock:
        """Return a block; each is made once, which takes longer than to insert it."""
        made = self._made.get(block)
        if made is None:
            made = self._made[block] = self._make(block)
        return made

    def _make(self, block: int) -> SizedBlock:
        parent, depth = self._parents[block], self._depths[block]
        return SizedBlock(
            key=_key(block),
            parent=self._root if parent < 0 else _key(parent),
            ns=self._space,
            kind=CHECKPOINT,
            tokens=b"",
            start=depth * self._block_tokens,
            cost=estimated_cost(depth * self._block_tokens, self._block_tokens),
            payload={},
            size=self._sizes[block],
        )

    def _pinned_now(self, key: bytes) -> bool:
        return key in self._pinned

    def _count(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "evicted":
            self.evictions += fields["blocks"]
            self.evicted += fields["bytes"]
        elif kind == "stored":
            self.insertions += fields["blocks"]
            self.inserted += fields["bytes"]


class _OrderedRam(RamTier):
    """Takes a replacement that was made for a trace."""

    def __init__(self, budget: int, order: Replacement, pinned: Callable[[bytes], bool]) -> None:
        super().__init__(budget, "lru", pinned)
        self._order = order

    def take_expired(self) -> Iterator[RamEntry]:
        """Remove the blocks that a replacement with lifetimes says have expired, leaves first."""
        expired = getattr(self._order, "expired", None)
        while expired is not None and (key := expired(self._may_leave)) is not None:
            yield self.remove(key, evicted=True)


def _key(block: int) -> bytes:
    return block.to_bytes(KEY_BYTES, "big")
