"""Read a chain of blocks ahead of the restore that takes them one by one."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

BATCH_BYTES = 1 << 20
"""Bytes of the blocks that are read with one request; a larger block is read alone."""
AHEAD_BYTES = 8 << 20
"""Bytes that are under way or waiting to be taken."""
MAX_CHAINS = 16
"""Chains of lookups that are remembered."""

Batch = Future[dict[str, bytes]]
Start = Callable[[Sequence[str]], Batch]


@dataclass(frozen=True)
class Awaited:
    """Holds a block that is under way: the batch that brings it, and the bytes of that batch."""

    batch: Batch
    batch_bytes: int
    nbytes: int


class ReadAhead:
    """Starts requests for the blocks that follow the one asked for, in the chain in which a lookup found them."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._chains: deque[list[tuple[str, int]]] = deque()
        self._places: dict[str, tuple[list[tuple[str, int]], int]] = {}
        self._under_way: OrderedDict[str, Awaited] = OrderedDict()
        self._held = 0

    def found(self, chain: Sequence[tuple[str, int]]) -> None:
        """Remember names and sizes that a lookup found, in their order."""
        if not chain:
            return
        with self._lock:
            kept = list(chain)
            self._chains.append(kept)
            self._places |= {name: (kept, at) for at, (name, _) in enumerate(kept)}
            while len(self._chains) > MAX_CHAINS:
                for name, _ in (old := self._chains.popleft()):
                    if self._places.get(name, (None, 0))[0] is old:
                        del self._places[name]

    def follows(self, parent: str, child: str) -> None:
        """Remember that ``child``, found apart, is read behind ``parent``, the last one of a chain that was found."""
        with self._lock:
            (chain, at), (others, place) = (self._places.get(name, ([], 0)) for name in (parent, child))
            if others and at == len(chain) - 1:
                chain.append(others[place])
                self._places[child] = (chain, at + 1)

    def take(self, name: str) -> Awaited:
        """Return the block that is under way, or ask for it, and have those that follow it read meanwhile."""
        with self._lock:
            chain, at = self._places.get(name, ([(name, 0)], 0))
            if name not in self._under_way:
                self._read_from(chain, at)
            taken = self._under_way.pop(name)
            self._held -= taken.nbytes
            behind = at + 1
            while behind < len(chain) and self._held < AHEAD_BYTES:
                behind = behind + 1 if chain[behind][0] in self._under_way else self._read_from(chain, behind)
            return taken

    def forget(self) -> None:
        """Drop everything that is under way, since it failed or is not wanted."""
        with self._lock:
            self._under_way.clear()
            self._held = 0

    @property
    def held_bytes(self) -> int:
        return self._held

    def _read_from(self, chain: list[tuple[str, int]], at: int) -> int:
        """Ask for blocks from ``at`` on, as many as fit one batch; return the place behind them."""
        first, total = at, 0
        while at < len(chain) and (at == first or total + chain[at][1] <= BATCH_BYTES):
            total += chain[at][1]
            at += 1
        batch = self._start([name for name, _ in chain[first:at]])
        for name, nbytes in chain[first:at]:
            old = self._under_way.pop(name, None)
            self._held += nbytes - (old.nbytes if old is not None else 0)
            self._under_way[name] = Awaited(batch, total, nbytes)
        if self._held > AHEAD_BYTES:
            own = {name for name, _ in chain}
            for name in [name for name in self._under_way if name not in own]:  # of restores that ended early
                self._held -= self._under_way.pop(name).nbytes
        return at
