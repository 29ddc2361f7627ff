"""``ReplayTier``: the live store's RAM tier, fed with blocks that have sizes and no arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

from kvlab.replay.event_counts import EventCounts
from kvlab.replay.ordered_ram import OrderedRam
from kvlab.replay.orders import TraceClock, order_for
from kvlab.replay.sized_block import TraceBlocks
from kvlab.store.pins import Pins
from kvlab.store.ram.insertion import RamInserter

Chains = Callable[[], Iterable[Iterable[int]]]


class ReplayTier:
    """Looks up and inserts chains in a ``RamTier`` with the store's own ``RamInserter``.

    What a request finds stays while it runs, as what a match holds; while its blocks enter, the store's own insertion
    keeps them and their parents. Deviations from a store's RAM tier: keys are numbers instead of hashes; blocks enter
    as checkpoints do, which have parents and sizes but no index by tokens, so that a partial block is not dropped when
    a longer one covers it.

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
        self._blocks = TraceBlocks(parents, sizes, depths, block_tokens)
        self._pinned: frozenset[bytes] = frozenset()
        self._clock = TraceClock()
        self._counts = EventCounts()
        keys = self._blocks.keys
        order = order_for(replace, capacity, self._clock, lambda: ([keys[one] for one in chain] for chain in chains()))
        self._ram = OrderedRam(capacity, order, self._pinned_now)
        self._inserter = RamInserter(self._ram, (), None, self._counts, Pins())

    @property
    def evictions(self) -> int:
        """The number of blocks that left for others, or because their time had come."""
        return self._counts.evictions

    @property
    def insertions(self) -> int:
        """The number of blocks that entered."""
        return self._counts.insertions

    @property
    def held(self) -> int:
        """The size of all resident blocks together."""
        return self._ram.held

    def __len__(self) -> int:
        return len(self._ram)

    def __contains__(self, block: int) -> bool:
        return self._blocks.keys[block] in self._ram

    def start(self, chain: Sequence[int], now: float = 0.0) -> int:
        """Find the resident prefix of a chain, touch it from leaf to head, and pin it; return its blocks.

        Blocks whose time has come by ``now``, in seconds, have left before.
        """
        self._clock.begin(now)
        for entry in self._ram.take_expired():
            self._counts.left(entry.block.key, entry.nbytes, "evicted")
        names = self._blocks.keys
        keys = [names[block] for block in chain]
        found = sum(1 for _ in takewhile(self._ram.__contains__, keys))
        self._pinned = frozenset(keys[:found])
        for key in reversed(keys[:found]):
            self._ram.touch(key)
        return found

    def end(self, chain: Sequence[int], found: int) -> None:
        """Unpin what was found of a chain, and insert what was missing, parents first, as far as there is space."""
        self._pinned = frozenset()
        if found < len(chain):
            block = self._blocks.block
            self._inserter.add([block(one) for one in chain[found:]])

    def problems(self) -> list[str]:
        """Return what contradicts itself: a child without its parent, or more than the capacity."""
        found = []
        if self._ram.held > self._ram.budget and len(self._ram) > 1:
            found.append(f"the tier holds {self._ram.held}, more than its {self._ram.budget}")
        for entry in self._ram:
            if entry.block.parent != self._blocks.root and entry.block.parent not in self._ram:
                found.append(f"block {int.from_bytes(entry.block.key, 'big')} is resident without its parent")
        return found

    def _pinned_now(self, key: bytes) -> bool:
        return key in self._pinned
