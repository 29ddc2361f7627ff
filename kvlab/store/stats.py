"""Count what happens in one store, and call its observer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kvlab.store.ghosts import Ghosts
from kvlab.tiers import tiers_at_rest

Observer = Callable[[str, dict[str, Any]], None]


class StoreStats:
    """Counts stored, restored, spilled and lost blocks, and why requests missed. The caller holds the store's lock."""

    def __init__(self, observer: Observer | None) -> None:
        self.observer = observer
        self.ghosts = Ghosts()
        self._counts: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()

    def missed(self, reason: str) -> None:
        if reason:
            self._misses[reason.partition("=")[0]] += 1

    def restored(self, blocks: int) -> None:
        self._counts["restored_blocks"] += blocks

    def stored(self, blocks: int, nbytes: int) -> None:
        self._counts["stored_blocks"] += blocks
        self._counts["stored_bytes"] += nbytes
        self._notify("stored", blocks, nbytes)

    def spilled(self, blocks: int, nbytes: int) -> None:
        self._counts["spills"] += blocks
        self._notify("spilled", blocks, nbytes)

    def left(self, key: bytes, nbytes: int, reason: str) -> None:
        """Note that a block is gone for good, for the reason ``evicted`` or ``corrupt``."""
        self.ghosts.left(key, reason)
        self._counts["evictions" if reason == "evicted" else reason] += 1
        self._notify(reason, 1, nbytes)

    def _notify(self, kind: str, blocks: int, nbytes: int) -> None:
        if self.observer is not None:
            self.observer(kind, {"blocks": blocks, "bytes": nbytes})

    def figures(self) -> dict[str, Any]:
        names = ("stored_blocks", "stored_bytes", "restored_blocks", "evictions", "spills", "corrupt")
        return {name: self._counts[name] for name in names} | {"misses": dict(self._misses)}

    def delta(self) -> Mapping[str, int]:
        """Return what the counters grew by since the last call."""
        now = self._counts + Counter({f"miss:{reason}": n for reason, n in self._misses.items()})
        new, self._reported = now - self._reported, now
        return new


def by_tier(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the figures of tiers: bytes and blocks under the tier's name, counters added up, troubles in one line.

    RAM and SSD have their bytes and blocks always, 0 where the store lacks them; others where it has them.
    """
    names = [tier.name for tier in tiers_at_rest(figures)]
    merged: dict[str, Any] = {}
    counters = Counter({"bytes_written": 0})
    troubles: list[str] = []
    for name in names:
        rest = dict(figures.get(name, {}))
        merged |= {f"{name}_{what}": rest.pop(what, 0) for what in ("bytes", "blocks")}
        troubles += filter(None, [rest.pop("trouble", "")])
        counters.update(rest)
    return merged | counters | {"trouble": "; ".join(troubles)}
