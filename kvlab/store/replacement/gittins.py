"""Least Gittins index leaves first, where that hits more than LRU: what returns least per block and time.

The order is that of :mod:`kvlab.store.gittins_order`. Two virtual tiers take every request: one evicts in that order,
one as LRU does. The policy holds what LRU's tier holds until the other tier leads: until it has hit so much more than
LRU, in all and since its lowest lead, as is worth the risk beside the capacity and what LRU misses, and far more than
chance gives. Then the policy comes to hold what that tier holds. The hits that it gains on LRU may fall by a quarter of
such a lead, below half of the most that it has gained: then it comes to hold what LRU's tier holds again, and asks for
twice the lead next time.

What chance gives is the root of the sum of squares of the leads of all requests: the standard deviation of their sum if
neither order were better (a paired test, as McNemar's of 1947 is for single hits). The question is asked after every
request, so that two or three deviations would come about by chance.

So it is behind LRU only where a lead that was shown turns into a loss before half of it is gained, and then by a
quarter of it, and what is lost until both hold the same keys. It is not strictly never below: no policy without a view
of the future is that unless it is LRU, since its first other choice may be the next key.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

from kvlab.store.eviction_order import EvictionOrder, require_resident
from kvlab.store.gittins_order import GittinsOrder, OpenRequest
from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent
from kvlab.store.replacement.lru import Lru
from kvlab.store.virtual_tier import VirtualTier

LEAD, LEAD_KEYS = 1 / 16, 8
"""Share of the capacity, and keys of the mean size, that are a lead."""
DEVIATIONS = 4
"""Standard deviations of what chance gives that a lead has besides."""
MISSES = 1 / 64
"""Share of LRU's misses that a lead has besides: less is not worth the risk."""
LOSS, KEPT = 1 / 4, 1 / 2
"""LRU is followed again where this share of a lead is lost from this share of what was gained on LRU."""
MOST_EVICTED_AHEAD = 16
"""Keys that a virtual tier evicts before the policy does, at most, until one may leave."""


class Gittins(Replacement):
    """Evicts what the virtual tier that it follows does not hold, and then what that would evict next."""

    name = "gittins"

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._sizes: dict[Hashable, int] = {}
        self._parents: dict[Hashable, Hashable] = {}
        self._linked: tuple[Hashable, Hashable] = (None, None)
        self._request = OpenRequest()
        self._open: set[Hashable] = set()
        self._by_use = EvictionOrder()
        self._lru = VirtualTier(capacity, Lru(capacity))
        self._gittins = VirtualTier(capacity, GittinsOrder(capacity))
        self._follows = False
        self._surplus = EvictionOrder()
        self._hits = self._lead = self._lowest_lead = self._most_ahead = 0
        self._used = self._squares = 0
        self._caution = 1

    def link(self, key: Hashable, parent: Hashable, start: int) -> None:
        self._linked = (key, parent)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._sizes)
        linked, parent = self._linked
        if linked != key or parent != self._request.end():
            self._end_request()
        if linked == key:
            self._parents[key] = parent
        self._request.admitted.append(key)
        self._open.add(key)
        self._sizes[key] = max(size, 1)
        self._by_use.place(key)

    def touch(self, key: Hashable) -> None:
        if key not in self._sizes:
            raise KeyError(key)
        request = self._request
        is_next = request.touched and not request.admitted and self._parents.get(request.touched[-1]) == key
        if not is_next or key in self._open:
            self._end_request()
        self._request.touched.append(key)
        self._open.add(key)
        self._by_use.place(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        if not self._follows:
            return self._by_use.first(evictable)
        key = self._surplus.first(evictable)
        for _ in range(MOST_EVICTED_AHEAD):
            if key is not None or (ahead := self._gittins.evict(self._open)) is None:
                break
            if ahead in self._sizes:
                self._surplus.place(ahead)
                key = self._surplus.first(evictable)
        return self._by_use.first(evictable) if key is None else key

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        require_resident(key, key in self._sizes)
        if key in self._open:
            self._end_request()
        del self._sizes[key]
        self._parents.pop(key, None)
        self._by_use.remove(key)
        if key in self._surplus:
            self._surplus.remove(key)
        if not evicted:
            self._lru.forget(key)
            self._gittins.forget(key)

    def freed(self, key: Hashable) -> None:
        self._by_use.freed(key)
        self._surplus.freed(key)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def _end_request(self) -> None:
        """Take the request in progress to both virtual tiers, and choose which one to follow."""
        request, self._request = self._request, OpenRequest()
        chain = request.chain()
        if not chain:
            return
        # All at once: hits of a request in progress alone would look like a lead.
        self._hits += sum(self._sizes[key] for key in request.touched)
        self._used += sum(self._sizes.get(key, 0) for key in chain)
        self._open.clear()
        root = self._parents.get(chain[0])
        self._lru.use(chain, self._sizes, root)
        left = self._gittins.use(chain, self._sizes, root)
        if self._follows:
            self._update_surplus([*left, *chain])
        self._choose()

    def _update_surplus(self, keys: list[Hashable]) -> None:
        """Note which of the keys the policy holds, and the followed tier does not."""
        for key in keys:
            is_surplus = key in self._sizes and key not in self._gittins
            if is_surplus and key not in self._surplus:
                self._surplus.place(key)
            elif not is_surplus and key in self._surplus:
                self._surplus.remove(key)

    def _choose(self) -> None:
        """Change over to the other virtual tier where that has shown, or lost, enough."""
        lead, ahead = self._gittins.hits - self._lru.hits, self._hits - self._lru.hits
        self._squares += (lead - self._lead) ** 2
        self._lead = lead
        needed = self._caution * (LEAD * self.capacity + LEAD_KEYS * self._lru.mean_size)
        if not self._follows:
            self._lowest_lead = min(self._lowest_lead, lead)
            by_chance = self._caution * DEVIATIONS * math.sqrt(self._squares)
            by_misses = self._caution * MISSES * (self._used - self._lru.hits)
            if min(lead, lead - self._lowest_lead) >= needed and lead >= max(by_chance, by_misses):
                self._follows, self._most_ahead = True, ahead
                self._update_surplus(list(self._by_use))
            return
        self._most_ahead = max(self._most_ahead, ahead)
        kept = KEPT * self._most_ahead if self._most_ahead > 0 else self._most_ahead
        if ahead < kept - LOSS * needed:
            self._follows, self._lowest_lead = False, lead
            self._caution *= 2
            self._surplus = EvictionOrder()
