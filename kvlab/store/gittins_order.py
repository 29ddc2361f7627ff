"""``GittinsOrder``: what returns least per block and time leaves first, judged by how turns like it returned.

Gittins, "Bandit processes and dynamic allocation indices", JRSS B 1979; the return is learnt by class and age as in LHD
(Beckmann, Chen & Cidon, "LHD: Improving cache hit rate by maximizing hit density", NSDI 2018). A request uses a chain
of blocks. Blocks that it takes from one earlier request, or that are new, are a run of one class: by the gap since that
earlier use, by how often the run was continued, and whether it is the end of the chain, which a next turn often
replaces. The index is that of :mod:`kvlab.store.return_rates`: the hits that keeping a block for some time brings, over
that time. Time is counted in requests, ages in half octaves, so no number has the scale of a trace. What was evicted is
remembered and counts, too, so that the order does not only see what it kept.

Limits: a order is not told of requests, so their ends are derived: a touched key continues a request if it is the
parent of the key touched last, an admitted one if its parent is the end of the request so far. Requests that interleave
are cut into parts, which makes classes coarser and no result wrong. Blocks are taken to be of one size, and to cost the
same.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

from kvlab.store.replacement.base import Evictable, Replacement, any_key, require_absent
from kvlab.store.return_rates import AGE_STARTS, AGES, ReturnRates, age_bin

GAPS, TURNS = 16, 6
"""Gap bins of one and a half octaves, and bins of continuations of one octave."""
GHOST_CAPACITIES = 8
"""Evicted keys that are remembered, for each resident one."""
MIN_REQUESTS, REFRESH_SHARE = 32, 1 / 32
"""Indices are computed anew after so many requests, and after this share of all requests."""


@dataclass(slots=True, eq=False)
class _Run:
    """Keys, the deepest last, that one request used and no later one has; ``left`` of the ``length`` keys remain."""

    kind: int
    turns: int
    born: int
    length: int
    keys: list[Hashable]
    left: int
    age: int = 0
    is_parked: bool = False


@dataclass(slots=True)
class OpenRequest:
    """What is known of a request in progress: keys touched, the deepest first, and keys admitted after them."""

    touched: list[Hashable] = field(default_factory=list)
    admitted: list[Hashable] = field(default_factory=list)

    def end(self) -> Hashable | None:
        """Return the key that the next one of this request stands behind; None before the first one."""
        return self.admitted[-1] if self.admitted else self.touched[0] if self.touched else None

    def chain(self) -> list[Hashable]:
        """Return all of its keys, parents first."""
        return [*reversed(self.touched), *self.admitted]


class GittinsOrder(Replacement):
    """Evicts the deepest key of the run with the lowest index; of equal indices, the older run first."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._sizes: dict[Hashable, int] = {}
        self._parents: dict[Hashable, Hashable] = {}
        self._ghosts: OrderedDict[Hashable, None] = OrderedDict()
        self._run_of: dict[Hashable, _Run] = {}
        self._linked: tuple[Hashable, Hashable] = (None, None)
        self._request = OpenRequest()
        self._open: set[Hashable] = set()
        self._now = self._refreshed = 0
        self._due: list[tuple[int, int, _Run]] = []
        self._made = 0
        self._rates = ReturnRates(2 * GAPS * TURNS)
        self._groups: dict[int, OrderedDict[_Run, None]] = {}
        self._listed: dict[_Run, None] = {}
        self._parked: dict[_Run, None] = {}
        self._rank: dict[int, int] = {}
        self._filled: list[tuple[int, int]] = []

    def link(self, key: Hashable, parent: Hashable, start: int) -> None:
        self._linked = (key, parent)

    def admit(self, key: Hashable, size: int = 1, cost: float = 1.0, uses: int = 1) -> None:
        require_absent(key, key in self._sizes)
        linked, parent = self._linked
        if linked != key or parent != self._request.end():
            self._end_request()
        request = self._request
        if linked == key:
            self._parents[key] = parent
        request.admitted.append(key)
        self._open.add(key)
        self._sizes[key] = max(size, 1)
        self._ghosts.pop(key, None)

    def touch(self, key: Hashable) -> None:
        if key not in self._sizes:
            raise KeyError(key)
        request = self._request
        is_next = request.touched and not request.admitted and self._parents.get(request.touched[-1]) == key
        if not is_next or key in self._open:
            self._end_request()
        self._request.touched.append(key)
        self._open.add(key)

    def victim(self, evictable: Evictable = any_key) -> Hashable | None:
        key = self._lowest(evictable)
        if key is None and self._parked:
            self._unpark()
            key = self._lowest(evictable)
        if key is None and self._open:
            self._end_request()
            key = self._lowest(evictable)
        return key

    def remove(self, key: Hashable, evicted: bool = True) -> None:
        if key not in self._sizes:
            raise KeyError(key)
        if key in self._open:
            self._end_request()
        del self._sizes[key]
        self._parents.pop(key, None)
        if evicted:
            self._ghosts[key] = None
            if len(self._ghosts) > GHOST_CAPACITIES * (len(self._sizes) + 1):
                self._forget(self._ghosts.popitem(last=False)[0])
        else:
            self._forget(key)

    def freed(self, key: Hashable) -> None:
        run = self._run_of.get(key)
        if run is not None and run.is_parked:
            self._parked.pop(run, None)
            self._list(run)

    def __contains__(self, key: object) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def _forget(self, key: Hashable) -> None:
        run = self._run_of.pop(key, None)
        if run is not None:
            self._shrink(run, 1)

    def _lowest(self, evictable: Evictable) -> Hashable | None:
        while self._filled:
            key = self._first(self._groups[self._filled[0][1]], evictable)
            if key is not None:
                return key
            heapq.heappop(self._filled)
        return None

    def _first(self, group: OrderedDict[_Run, None], evictable: Evictable) -> Hashable | None:
        """Return the first key of a group that may leave."""
        while group:
            key = self._leaf(next(iter(group)), evictable)
            if key is not None:
                return key
        return None

    def _leaf(self, run: _Run, evictable: Evictable) -> Hashable | None:
        """Return the deepest key of a listed run if it may leave; else take the run off the lists."""
        key = self._deepest(run)
        if key is not None and evictable(key):
            return key
        self._unlist(run)
        if key is not None:
            run.is_parked = True
            self._parked[run] = None
        return None

    def _deepest(self, run: _Run) -> Hashable | None:
        keys = run.keys
        while keys:
            key = keys[-1]
            if key in self._sizes and self._run_of.get(key) is run and key not in self._open:
                return key
            keys.pop()
        return None

    def _list(self, run: _Run) -> None:
        run.is_parked = False
        place = run.kind * AGES + run.age
        group = self._groups.setdefault(place, OrderedDict())
        if not group:
            heapq.heappush(self._filled, (self._rank_of(place), place))
        group[run] = None
        self._listed[run] = None

    def _rank_of(self, place: int) -> int:
        """Return the rank of a class and age; what is not ranked yet leaves last, the oldest first."""
        return self._rank.get(place, (self._rates.kinds + 1) * AGES - place % AGES)

    def _unlist(self, run: _Run) -> None:
        group = self._groups.get(run.kind * AGES + run.age)
        if group is not None:
            group.pop(run, None)
        self._listed.pop(run, None)

    def _unpark(self) -> None:
        runs = [*self._listed, *self._parked]
        self._parked.clear()
        self._groups.clear()
        self._filled.clear()
        self._listed.clear()
        for run in sorted(runs, key=lambda run: run.born):
            self._list(run)

    def _count(self, run: _Run, sign: float) -> None:
        """Add a run to those at risk at its age, or take it away."""
        self._rates.count(run.kind, run.age, run.born, sign * run.left / run.length)

    def _shrink(self, run: _Run, keys: int) -> None:
        self._count(run, -1.0)
        run.left -= keys
        self._count(run, 1.0)
        if run.left <= 0:
            self._unlist(run)
            self._parked.pop(run, None)

    def _end_request(self) -> None:
        """Learn from the request in progress, and make runs of its keys."""
        chain, self._request = self._request.chain(), OpenRequest()
        self._open.clear()
        if not chain:
            return
        self._now += 1
        self._grow_older()
        gap, turns, is_continued, start = 0, 1, False, 0
        while start < len(chain):
            run, end = self._run_of.get(chain[start]), start + 1
            while end < len(chain) and self._run_of.get(chain[end]) is run:
                end += 1
            if run is not None:
                gap, turns = self._learn(run, end - start), run.turns + 1
                is_continued = run.left <= end - start
                if run.left > 0 and run.is_parked:
                    self._parked.pop(run, None)
                    self._list(run)
            elif not is_continued:
                gap, turns = 0, 1
            is_last = end == len(chain)
            self._start(chain[start : end - is_last], gap, turns, 0)
            if is_last:
                self._start(chain[end - 1 :], gap, turns, 1)
            start = end
        if self._now - self._refreshed >= MIN_REQUESTS + self._now * REFRESH_SHARE:
            self._refresh()

    def _learn(self, run: _Run, used: int) -> int:
        """Count the return of so many keys of a run; return the bin of the gap."""
        at = self._rates.learn(run.kind, self._now - run.born, used / run.length)
        self._shrink(run, used)
        return 1 + at // 3

    def _start(self, keys: list[Hashable], gap: int, turns: int, end: int) -> None:
        if not keys:
            return
        kind = (end * GAPS + min(gap, GAPS - 1)) * TURNS + min((turns - 1).bit_length(), TURNS - 1)
        run = _Run(kind, turns, self._now, len(keys), keys, len(keys))
        for key in keys:
            self._run_of[key] = run
        self._count(run, 1.0)
        self._list(run)
        self._await(run)

    def _await(self, run: _Run) -> None:
        self._made += 1  # unique, so that runs themselves are never compared
        heapq.heappush(self._due, (run.born + math.ceil(AGE_STARTS[run.age + 1]), self._made, run))

    def _grow_older(self) -> None:
        """Move the runs whose time has come to the bin of their age."""
        while self._due and self._due[0][0] <= self._now:
            run = heapq.heappop(self._due)[2]
            if run.left <= 0:
                continue
            is_listed = run in self._listed
            if is_listed:
                self._groups[run.kind * AGES + run.age].pop(run, None)
            share, age = run.left / run.length, age_bin(self._now - run.born)
            self._count(run, -1.0)
            self._rates.aged(run.kind, run.age, age, share)
            run.age = age
            self._count(run, 1.0)
            if is_listed:
                self._list(run)
            if age < AGES - 1:
                self._await(run)

    def _refresh(self) -> None:
        """Compute the indices of all classes at all ages, and sort by them."""
        self._refreshed = self._now
        self._rank = self._rates.ranks(self._now)
        self._filled = [(self._rank_of(place), place) for place, group in self._groups.items() if group]
        heapq.heapify(self._filled)
