"""``SizedBlock``: a block of the store that has a size and no arrays."""

from __future__ import annotations

from dataclasses import dataclass

from kvlab.store.blocks import Block


@dataclass(frozen=True, eq=False)
class SizedBlock(Block):
    """Stands for a block of a trace in the store's tiers; its key names it, and its tokens are those of its key.

    ``size`` is in the unit of the tier's capacity.
    """

    size: int = 1

    @property
    def nbytes(self) -> int:
        """Return the size: tiers call every unit bytes."""
        return self.size
