"""Evict blocks from a shared folder, by one replacement order a process, checked against the rows of the index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from kvlab.store.replacement import Replacement, make
from kvlab.store.ssd.folder import StoreFolder


class Evictor:
    """Evicts within ``budget``, leaves first. ``make_space`` is called inside ``SsdIndex.write``.

    The order is read from the index at the first eviction; from then on, what other processes add or use is read too.
    """

    def __init__(
        self,
        folder: StoreFolder,
        budget: int,
        replace: str,
        pinned: Callable[[bytes], bool],
        left: Callable[[bytes, int, str], None],
    ) -> None:
        self._folder, self._budget, self._replace = folder, budget, replace
        self._pinned, self._left = pinned, left
        self._order: Replacement | None = None
        self._used: dict[bytes, float] = {}
        self._parents: dict[bytes, bytes] = {}
        self._below: Counter[bytes] = Counter()
        self._stuck: set[bytes] = set()
        self._last = 0
        self._stale = True

    def make_space(self, size: int, keep: Collection[bytes] = ()) -> bool:
        """Evict until ``size`` more bytes fit, none of ``keep``; return False when that is impossible."""
        if size > self._budget:
            return False
        index = self._folder.index
        order: Replacement | None = None
        while index.held() + size > self._budget:
            if self._folder.free_quarantined():
                continue
            order = order or self._refreshed()
            if not self._evict(order, keep) and (size or not self._folder.free_unread()):
                return False  # what cannot be read for now leaves for the budget only, not for new blocks
        return True

    def _evict(self, order: Replacement, keep: Collection[bytes]) -> bool:
        index = self._folder.index
        while True:
            key = order.victim(lambda key: key not in keep and self._may_leave(key))
            if not isinstance(key, bytes):
                return False
            row = index.one("SELECT used FROM blocks WHERE key = ?", key)
            if row is None:  # another process evicted it
                self.gone(key)
            elif row[0] > self._used[key]:  # another process used it
                self._used[key] = row[0]
                order.touch(key)
            else:
                try:
                    self._folder.remove_file(key)
                except OSError:  # of all files, this one will not go: others may
                    self._stuck.add(key)
                    continue
                nbytes = index.forget(key, "evicted")
                self._forget(order, key, evicted=True)
                self._left(key, nbytes, "evicted")
                return True

    def _may_leave(self, key: object) -> bool:
        if not isinstance(key, bytes) or key in self._below or key in self._stuck or self._pinned(key):
            return False
        sql = "SELECT 1 FROM blocks WHERE parent = ?1 OR (key = ?1 AND owner IS NOT NULL) LIMIT 1"
        return self._folder.index.one(sql, key) is None

    def _refreshed(self) -> Replacement:
        """Return the order, with the blocks added to the index since the last call."""
        if self._order is None or self._stale:
            self._order, self._last, self._stale = make(self._replace, self._budget), 0, False
            self._used.clear()
            self._stuck.clear()
            self._parents.clear()
            self._below.clear()
        rows = self._folder.index.rows(
            "SELECT id, key, parent, start, bytes, cost, uses, used FROM blocks WHERE id > ? ORDER BY used", self._last
        )
        for at, key, parent, start, nbytes, cost, uses, used in rows:
            self._last = max(self._last, at)
            if key in self._order:  # it left and was stored again
                self._forget(self._order, key, evicted=False)
            self._order.link(key, parent, start)
            self._order.admit(key, nbytes, cost, uses)
            self._used[key], self._parents[key] = used, parent
            self._below[parent] += 1
        return self._order

    def _forget(self, order: Replacement, key: bytes, *, evicted: bool) -> None:
        order.remove(key, evicted)
        del self._used[key]
        parent = self._parents.pop(key)
        self._below[parent] -= 1
        if not self._below[parent]:
            del self._below[parent]
            if parent in order:
                order.freed(parent)

    def touch(self, key: bytes, when: float) -> None:
        """Note a use by this process, which the index knows by ``when``."""
        if self._order is not None and key in self._order:
            self._order.touch(key)
            self._used[key] = max(self._used[key], when)

    def reset(self) -> None:
        """Read the order anew at the next eviction. Any thread may call this."""
        self._stale = True

    def gone(self, key: bytes) -> None:
        """Note that a block left for another reason than a full folder."""
        if self._order is not None and key in self._order:
            self._forget(self._order, key, evicted=False)
