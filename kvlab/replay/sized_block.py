"""``SizedBlock``: a block of the store that has a size and no arrays; and those of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

from kvlab.store.blocks import CHECKPOINT, Block, estimated_cost
from kvlab.store.keys import Namespace

KEY_BYTES = 4
"""Bytes of a key: the number of the block."""


class SizedBlock(Block):
    """Stands for a block of a trace in the store's tiers; its key names it, and its tokens are those of its key.

    ``size`` is in the unit of the tier's capacity. ``is_partial``: it holds fewer tokens than a full block.
    """

    size: int
    is_partial: bool
    # The same for all: an attribute of the class costs no time and no memory a block.
    kind, tokens, payload, used = CHECKPOINT, b"", MappingProxyType({}), 0.0

    def __init__(
        self,
        key: bytes,
        parent: bytes,
        ns: Namespace,
        start: int,
        cost: float,
        size: int,
        is_partial: bool,
        uses: int = 1,
    ) -> None:
        own = self.__dict__  # a frozen value's attributes, one by one, take longer than to insert it
        own["key"], own["parent"], own["ns"], own["start"] = key, parent, ns, start
        own["cost"], own["size"], own["is_partial"], own["uses"] = cost, size, is_partial, uses

    @property
    def nbytes(self) -> int:
        """Return the size: tiers call every unit bytes."""
        return self.size

    def used_times(self, uses: int) -> SizedBlock:
        """Return the block with another number of uses."""
        if uses == self.uses:
            return self
        return SizedBlock(self.key, self.parent, self.ns, self.start, self.cost, self.size, self.is_partial, uses)


class TraceBlocks:
    """Makes the blocks of a trace, each once.

    Args:
        parents: the parent of each block, -1 for first blocks.
        sizes: the size of each block.
        depths: the place of each block in its chain.
        block_tokens: tokens of a full block.
        partial: whether each block is partial; None: none is.
    """

    def __init__(
        self,
        parents: Sequence[int],
        sizes: Sequence[int],
        depths: Sequence[int],
        block_tokens: int,
        partial: Sequence[bool] | None = None,
    ) -> None:
        self._parents, self._sizes, self._depths, self._partial = parents, sizes, depths, partial
        self._block_tokens = block_tokens
        self._space = Namespace("replay", "", "", block_tokens)
        self.root = self._space.root()
        self.keys = [block.to_bytes(KEY_BYTES, "big") for block in range(len(parents))]
        self._costs = [
            estimated_cost(depth * block_tokens, block_tokens) for depth in range(max(depths, default=0) + 1)
        ]
        self._made: list[SizedBlock | None] = [None] * len(parents)

    def block(self, number: int) -> SizedBlock:
        """Return a block."""
        made = self._made[number]
        if made is None:
            parent, depth = self._parents[number], self._depths[number]
            made = self._made[number] = SizedBlock(
                self.keys[number],
                self.root if parent < 0 else self.keys[parent],
                self._space,
                depth * self._block_tokens,
                self._costs[depth],
                self._sizes[number],
                self._partial is not None and self._partial[number],
            )
        return made
