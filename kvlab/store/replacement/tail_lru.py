"""Tail-Optimized LRU: what a conversation can lose without answering late leaves first, then the least recently used.

Zhang, Li, Moallemi & Peng, "Tail-Optimized Caching for LLM Inference", NeurIPS 2025 (arXiv 2510.15152). Of a
conversation of L tokens whose next prompt adds Q, the tokens behind the first L + Q - threshold are safe to evict: with
them gone, the next turn still computes no more than the threshold. Deviations: tokens count by what they cost, which in
the store grows with their position. A policy does not know conversations: the end of one is a leaf, what it has lost
already is learnt when the last child of a block is evicted, and of a block with several children only the last one
counts.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from kvlab.store.eviction_order import EvictionOrder
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent

THRESHOLD_TOKENS = 1024.0
"""What a turn may compute and still answer in time: about a second of a laptop; not tuned."""
NEXT_PROMPT_TOKENS = 256.0
"""What of it the new text of a turn takes."""


@dataclass(slots=True)
class _Leaf:
    """A resident key: when it was used, and the cost of what was evicted behind it since."""

    cost: float
    used: int
    lost: float = 0.0


class TailLru(Replacement):
    """Evicts the least recently used of the safe keys, then of all.

    A key is safe while its cost, with that of what was evicted behind it since its last use, is at most ``threshold -
    next_prompt``. The owner calls ``freed`` right after the ``remove`` that took the last child, as the tiers do.

    Args:
        threshold: what a turn may compute, in the unit of the costs: tokens in the store, as long as it is not told
            seconds.
        next_prompt: what of it the new text of a turn takes.
    """

    name = "tail_lru"

    def __init__(
        self, capacity: int, threshold: float = THRESHOLD_TOKENS, next_prompt: float = NEXT_PROMPT_TOKENS
    ) -> None:
        super().__init__(capacity)
        self._may_lose = threshold - next_prompt
        self._known: dict[Hashable, _Leaf] = {}
        self._order = EvictionOrder()
        self._time = 0
        self._just_lost = 0.0

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._known)
        self._known[key] = _Leaf(cost, 0)
        self.touch(key)

    def touch(self, key: Hashable) -> None:
        leaf = self._known[key]
        self._time += 1
        leaf.used, leaf.lost = self._time, 0.0
        self._place(key, leaf)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        return self._order.first(evictable)

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        leaf = self._known.pop(key)
        self._order.remove(key)
        self._just_lost = leaf.lost + leaf.cost if evicted else 0.0

    def freed(self, key: Hashable) -> None:
        if key in self._known:
            leaf = self._known[key]
            leaf.lost, self._just_lost = self._just_lost, 0.0
            self._place(key, leaf)

    def _place(self, key: Hashable, leaf: _Leaf) -> None:
        is_safe = leaf.lost + leaf.cost <= self._may_lose
        self._order.place(key, (0.0 if is_safe else 1.0, float(leaf.used)))

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def __len__(self) -> int:
        return len(self._known)
