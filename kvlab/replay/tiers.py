"""``ReplayTiers``: the live store's RAM tier over an SSD tier, fed with blocks that have sizes and no arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from kvlab.replay.event_counts import EventCounts
from kvlab.replay.kept_folder import KeptFolder
from kvlab.replay.ordered_ram import OrderedRam
from kvlab.replay.orders import TraceClock, order_for
from kvlab.replay.settled_writer import SettledWriter
from kvlab.replay.sized_block import TraceBlocks
from kvlab.replay.tier import Chains
from kvlab.store.pins import Pins
from kvlab.store.ram.insertion import RamInserter


class ReplayTiers:
    """Finds, reads and stores chains as ``Store`` does with a RAM tier and a folder on SSD.

    What a request reads stays until it is read. A block below RAM is kept in RAM from its second reading on. New blocks
    enter RAM, others leaving for them, and are written to SSD behind the request; one that must leave RAM unwritten is
    written first. Both tiers note every use. Deviations: the SSD tier is a structure in memory, without files, index
    and headers; the writer keeps up (:class:`SettledWriter`); and those of :class:`ReplayTier`.

    Args:
        ram, ssd: capacities in the unit of the blocks' sizes; an SSD of 0 is none.
        replace: name of a replacement policy of the store, for both tiers.
        blocks: the blocks of the trace.
        admit: uses after which a block may be written to SSD.
        chains: returns the chains of all requests, for a policy that knows the future.
    """

    def __init__(
        self, ram: int, ssd: int, replace: str, blocks: TraceBlocks, *, admit: int = 1, chains: Chains = tuple
    ) -> None:
        keys = blocks.keys
        self._blocks, self._clock, self.counts = blocks, TraceClock(), EventCounts()
        orders = [
            order_for(replace, size, self._clock, lambda: ([keys[one] for one in chain] for chain in chains()))
            for size in (ram, ssd)
        ]
        self._pinned: frozenset[bytes] = frozenset()
        self.ram = OrderedRam(ram, orders[0], self._pinned_now)
        self.ssd = KeptFolder(ssd, orders[1]).open(pinned=self._is_needed, dropped=self.counts.left)
        below = (self.ssd,) if ssd else ()
        self._writer = SettledWriter(self.ram, below, self.counts, admit=admit) if ssd else None
        self._inserter = RamInserter(self.ram, below, self._writer, self.counts, Pins())

    def start(self, chain: Sequence[int], now: float = 0.0) -> list[bool]:
        """Find the stored prefix of a chain, and pin it; return for each block of it whether it is in RAM.

        Blocks whose time has come by ``now``, in seconds, have left before.
        """
        self._clock.begin(now)
        for entry in self.ram.take_expired():
            if entry.block.key not in self.ssd:
                self.counts.left(entry.block.key, entry.nbytes, "evicted")
        self.ssd.expire()
        keys = self._keys(chain)
        in_ram, on_ssd = self.ram.__contains__, self.ssd.__contains__
        found = [in_ram(key) for key in takewhile(lambda key: in_ram(key) or on_ssd(key), keys)]
        self._pinned = frozenset(keys[: len(found)])
        return found

    def read(self, chain: Sequence[int], blocks: int) -> None:
        """Read the first blocks of the stored prefix, from the leaf to the head the latest used; unpin all."""
        keys = self._keys(chain[:blocks])
        for number, key in zip(chain, keys, strict=False):
            if key not in self.ram and self._inserter.is_wanted(key):
                self._inserter.keep(self._blocks.block(number))
        for key in reversed(keys):
            if key in self.ram:
                self.ram.touch(key)
        self.ssd.touch(keys[::-1])
        self._pinned = frozenset()
        self._settle()

    def end(self, chain: Sequence[int], computed: Sequence[int] = ()) -> None:
        """Store what no tier has of a chain, parents first, and write what is due.

        Blocks ``computed`` again though SSD has them are kept in RAM before, which costs no reading, as far as there is
        space without waiting.
        """
        for number in computed:
            self._inserter.keep(self._blocks.block(number))
        new = [one for one, key in zip(chain, self._keys(chain), strict=True) if key not in self.ram]
        names, block = self._blocks.keys, self._blocks.block
        self._inserter.add([block(one) for one in new if names[one] not in self.ssd])
        self._settle()

    @property
    def evictions(self) -> int:
        """The number of blocks that left a tier for good."""
        return self.counts.evictions

    @property
    def written(self) -> int:
        """The size of the blocks that were written to SSD."""
        return self.ssd.written

    def _settle(self) -> None:
        """Write what is due: after a reading, too, which may be the use that admits a block to SSD."""
        if self._writer is not None:
            self._writer.settle()

    def _keys(self, chain: Sequence[int]) -> list[bytes]:
        names = self._blocks.keys
        return [names[block] for block in chain]

    def _pinned_now(self, key: bytes) -> bool:
        return key in self._pinned

    def _is_needed(self, key: bytes) -> bool:
        return key in self._pinned or self.ram.has_children(key)
