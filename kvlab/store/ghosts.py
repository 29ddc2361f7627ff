"""What the store remembers about KV that it does not hold, to say why a request missed."""

from __future__ import annotations

from collections import OrderedDict


class Ghosts:
    """The last ``most`` keys that left, with the reason, and prompt starts, with the namespaces they were stored in."""

    def __init__(self, most: int = 50_000) -> None:
        self._most = most
        self._reasons: OrderedDict[bytes, str] = OrderedDict()
        self._heads: OrderedDict[bytes, set[bytes]] = OrderedDict()

    def left(self, key: bytes, reason: str) -> None:
        self._reasons[key] = reason
        self._reasons.move_to_end(key)
        if len(self._reasons) > self._most:
            self._reasons.popitem(last=False)

    def back(self, key: bytes) -> None:
        """The key is stored again."""
        self._reasons.pop(key, None)

    def eviction_reason(self, key: bytes) -> str:
        return self._reasons.get(key, "")

    def seen(self, head: bytes, root: bytes) -> bool:
        """Note that a prompt starting as ``head`` was stored in ``root``; True when that is news."""
        roots = self._heads.setdefault(head, set())
        if root in roots:
            return False
        roots.add(root)
        if len(self._heads) > self._most:
            self._heads.popitem(last=False)
        return True

    def roots_of(self, head: bytes) -> set[bytes]:
        return self._heads.get(head, set())
