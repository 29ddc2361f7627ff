"""Remember KV that the store no longer holds, to say why a request missed."""

from __future__ import annotations

from collections import OrderedDict


class Ghosts:
    """Remembers the last ``max_keys`` keys that left, with the reason, and how prompts start, with their namespaces."""

    def __init__(self, max_keys: int = 50_000) -> None:
        self._max_keys = max_keys
        self._reasons: OrderedDict[bytes, str] = OrderedDict()
        self._heads: OrderedDict[bytes, set[bytes]] = OrderedDict()

    def left(self, key: bytes, reason: str) -> None:
        self._reasons[key] = reason
        self._reasons.move_to_end(key)
        if len(self._reasons) > self._max_keys:
            self._reasons.popitem(last=False)

    def back(self, key: bytes) -> None:
        """Forget that a key left: it is stored again."""
        self._reasons.pop(key, None)

    def eviction_reason(self, key: bytes) -> str:
        return self._reasons.get(key, "")

    def seen(self, head: bytes, root: bytes) -> bool:
        """Note that a prompt starting as ``head`` was stored in ``root``; return True the first time."""
        roots = self._heads.setdefault(head, set())
        if root in roots:
            return False
        roots.add(root)
        if len(self._heads) > self._max_keys:
            self._heads.popitem(last=False)
        return True

    def roots_of(self, head: bytes) -> set[bytes]:
        return self._heads.get(head, set())
