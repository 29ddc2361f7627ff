"""LRU at every capacity from one pass over a trace: stack distances, exact in trees as well.

Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9(2), 1970: LRU keeps at every
capacity the blocks used last, so that one number per use, its stack distance, tells the capacities at which it hits.

In a tree, LRU takes the least recently used block without children, and a request uses a whole chain. The order of
leaving is then: by the last request that used a block, and within one request from the leaf to the head. (The blocks
that some request was the last to use are the end of its chain; of them only the deepest has no child left, and all
blocks without children that later requests used are younger.) So the stack holds later requests above earlier ones and
heads above their children: a prefix has smaller distances than what follows it, and the distance of a block at the
start of a request is the capacity from which on it is resident then. That is what a simulation gives which pins the
chain of a request while it runs and inserts its missing blocks at its end, parents first, as far as there is space.

The blocks of a request that one earlier request was the last to use are a run, whose distances rise by one. Runs are
few: their number is that of changes of preferred children in a link-cut tree (Sleator & Tarjan, JCSS 26, 1983), O(log
n) a request in the amortised sense, however long the chains are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvlab.replay.dominance import earlier_and_greater
from kvlab.replay.trace import BlockTrace

NEVER = -1
"""The last use of a block that was not used before."""


@dataclass(frozen=True, eq=False)
class StackDistances:
    """Holds the runs of all requests in order, with their distances.

    Attributes:
        trace: what the runs are of.
        request, length: the request of each run, and its blocks, int64 ``[runs]``.
        distance: the stack distance of the first block of each run, in blocks, from 1 on; 0 for blocks that are new.
        tokens: the tokens of the blocks above that block in the stack, int64 ``[runs]``.
    """

    trace: BlockTrace
    request: np.ndarray
    length: np.ndarray
    distance: np.ndarray
    tokens: np.ndarray

    def hit_blocks(self, capacity: int) -> np.ndarray:
        """Return the resident blocks of each request's prefix at a capacity in blocks, int64 ``[requests]``."""
        found = np.clip(capacity - self.distance + 1, 0, self.length) * (self.distance > 0)
        return self._by_request(found)

    def hit_blocks_of_tokens(self, capacity: int) -> np.ndarray:
        """Return the same at a capacity in tokens, where a partial block takes its own tokens only."""
        trace, full = self.trace, self.trace.block_tokens
        left = capacity - self.tokens
        found = np.clip(left // full, 0, self.length) * (self.distance > 0)
        ends = np.concatenate([self.request[1:] != self.request[:-1], [True]]) if len(self.request) else found > 0
        ends &= (self.distance > 0) & trace.partial[self.request]
        last = trace.blocks[trace.offsets[self.request[ends] + 1] - 1]
        fits = left[ends] >= (self.length[ends] - 1) * full + trace.sizes[last]
        found[ends] = np.minimum(found[ends], self.length[ends] - 1)
        found[ends] += fits & (found[ends] == self.length[ends] - 1)
        return self._by_request(found)

    def curve(self) -> np.ndarray:
        """Return the hit blocks of all requests together at capacities 0, 1, ... ``unique``, int64."""
        size = self.trace.unique + 2
        known = self.distance > 0
        starts = np.bincount(self.distance[known], minlength=size)
        ends = np.bincount(self.distance[known] + self.length[known], minlength=size)
        return np.cumsum(np.cumsum(starts - ends))[: size - 1]

    def _by_request(self, found: np.ndarray) -> np.ndarray:
        counted = np.bincount(self.request, weights=found, minlength=len(self.trace))
        return np.minimum(np.rint(counted).astype(np.int64), self.trace.asked_blocks)


def stack_distances(trace: BlockTrace) -> StackDistances:
    """Find the stack distances of all uses of a trace.

    A trace of single blocks (:meth:`BlockTrace.plain`) gives LRU's usual ones.
    """
    last = last_uses(trace)
    request, length, start, used = _runs(trace, last)
    tokens = _tokens_of_runs(trace, start, length)
    known = used > NEVER
    # Within one request, deeper runs come first: they were last used earlier, and count nothing of each other.
    back = _reversed_in_groups(request[known])
    query, since = request[known][back], used[known][back]
    repeated = earlier_and_greater(since, length[known][back])
    repeated_tokens = earlier_and_greater(since, tokens[known][back]) if trace.partial.any() else None
    distance, above = np.zeros(len(request), np.int64), np.zeros(len(request), np.int64)
    at = np.flatnonzero(known)[back]
    distance[at] = trace.offsets[query] - trace.offsets[since + 1] - repeated + 1
    if repeated_tokens is None:
        above[at] = (distance[at] - 1) * trace.block_tokens
    else:
        sums = np.concatenate([[0], np.cumsum(trace.sizes[trace.blocks])])
        above[at] = sums[trace.offsets[query]] - sums[trace.offsets[since + 1]] - repeated_tokens
    return StackDistances(trace, request, length, distance, above)


def last_uses(trace: BlockTrace) -> np.ndarray:
    """Return for each place of each chain the last request before that used its block, int32 ``[total]``."""
    if trace.is_plain:
        return _last_uses_by_sorting(trace)
    last = np.full(trace.unique, NEVER, np.int32)
    found = np.empty(len(trace.blocks), np.int32)
    start, bounds = 0, trace.offsets[1:].tolist()
    for request, stop in enumerate(bounds):
        chain = trace.blocks[start:stop]
        found[start:stop] = last[chain]
        last[chain] = request
        start = stop
    return found


def _last_uses_by_sorting(trace: BlockTrace) -> np.ndarray:
    owner = np.repeat(np.arange(len(trace), dtype=np.int32), trace.lengths)
    order = np.argsort(trace.blocks, kind="stable")
    again = trace.blocks[order[1:]] == trace.blocks[order[:-1]]
    found = np.full(len(owner), NEVER, np.int32)
    found[order[1:][again]] = owner[order[:-1][again]]
    return found


def _runs(trace: BlockTrace, last: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return request, length, first place and last use of each run of places with one last use."""
    begins = np.zeros(len(last), bool)
    begins[1:] = last[1:] != last[:-1]
    begins[trace.offsets[:-1][trace.lengths > 0]] = True
    start = np.flatnonzero(begins)
    length = np.diff(np.concatenate([start, [len(last)]]))
    request = np.searchsorted(trace.offsets, start, side="right") - 1
    return request, length, start, last[start].astype(np.int64)


def _tokens_of_runs(trace: BlockTrace, start: np.ndarray, length: np.ndarray) -> np.ndarray:
    tokens = length * trace.block_tokens
    if trace.partial.any() and len(start):
        tokens = np.add.reduceat(trace.sizes[trace.blocks], start)
    return tokens


def _reversed_in_groups(group: np.ndarray) -> np.ndarray:
    """Return an order that keeps the groups, which lie behind one another, and turns each of them round."""
    if not len(group):
        return np.empty(0, np.int64)
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(group)]]))
    place = np.arange(len(group))
    return np.repeat(starts + starts + sizes - 1, sizes) - place
