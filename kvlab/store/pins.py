"""Count the blocks that must stay because a match that named them is not read yet."""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence

from kvlab.store.matches import Match


class Pins:
    """Pins blocks by match. A match that is dropped unread is unpinned at the next call of ``collect``.

    The caller holds the store's lock, except for ``in``, which any thread may use. ``unpinned``, where it is set, is
    called with each key that no match holds any more: a tier may have passed it over when it looked for a victim.
    """

    def __init__(self) -> None:
        self.unpinned: Callable[[bytes], None] | None = None
        self._pins: Counter[bytes] = Counter()
        self._open: dict[int, list[bytes]] = {}
        self._lost: deque[int] = deque()
        self._last = 0

    def __contains__(self, key: object) -> bool:
        return key in self._pins

    def ticket(self) -> int:
        self._last += 1
        return self._last

    def hold(self, match: Match) -> Match:
        keys = [piece.key for piece in match.pieces]
        if match.checkpoint is not None:
            keys.append(match.checkpoint)
        if keys:
            self._open[match.ticket] = keys
            self._pins.update(keys)
            weakref.finalize(match, self._lost.append, match.ticket).atexit = False
        return match

    def held(self, match: Match) -> bool:
        return match.ticket in self._open or not match.pieces

    def unpin(self, match: Match, *, keep: Sequence[bytes] = ()) -> None:
        """Unpin all but ``keep``. Harmless when done before."""
        self._drop(match.ticket, keep)

    def collect(self) -> None:
        while self._lost:
            self._drop(self._lost.popleft(), ())

    def _drop(self, ticket: int, keep: Sequence[bytes]) -> None:
        keys = self._open.pop(ticket, [])
        for key in keys:
            if key not in keep:
                self._pins[key] -= 1
                if not self._pins[key]:
                    del self._pins[key]
                    if self.unpinned is not None:
                        self.unpinned(key)
        if kept := [key for key in keys if key in keep]:
            self._open[ticket] = kept

    def problems(self) -> list[str]:
        right = Counter(key for keys in self._open.values() for key in keys) == self._pins
        return [] if right else ["pins: they are not those of the open matches"]
