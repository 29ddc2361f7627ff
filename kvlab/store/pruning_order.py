"""The order in which a listing of blocks is pruned: a chain is never broken."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

Key = TypeVar("Key", bytes, str)


def leaves_first(
    found: Sequence[tuple[Key, Key, float, int]], now: float, unused: float, surplus: int
) -> Iterator[tuple[Key, float]]:
    """Yield key and last use of blocks to remove until ``surplus`` bytes are gone: the leaf unused for longest first.

    ``found`` holds key, parent's key, time of the last use, and bytes of each block. Those that were used less than
    ``unused`` seconds before ``now`` stay. A use that lies in the future, since the
    clock was set back, counts as one just now.
    """
    rows = {key: (parent, used, size) for key, parent, used, size in found}
    children = Counter(parent for parent, _, _ in rows.values())
    heap = [(used, key) for key, (_, used, _) in rows.items() if not children[key]]
    heapq.heapify(heap)
    while heap and surplus > 0 and now - min(heap[0][0], now) >= unused:
        used, key = heapq.heappop(heap)
        parent, _, size = rows[key]
        yield key, used
        surplus -= size
        children[parent] -= 1
        if parent in rows and not children[parent]:
            heapq.heappush(heap, (rows[parent][1], parent))
