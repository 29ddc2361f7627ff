"""Answer lookups from the index."""

from __future__ import annotations

from collections.abc import Sequence

from kvlab.store import keys as k
from kvlab.store.blocks import BLOCK, CHECKPOINT, Child
from kvlab.store.ssd.index import SsdIndex


class IndexReader(SsdIndex):
    """Reads the index; it never waits for a connection that writes. Raises ``sqlite3.Error``."""

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        return self._set("SELECT key FROM blocks WHERE owner IS NULL AND key IN ({})", keys)

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        sql = "SELECT DISTINCT parent FROM blocks WHERE kind = {} AND owner IS NULL AND parent IN ({{}})"
        return self._set(sql.format(CHECKPOINT), parents)

    def roots_of(self, head: bytes) -> set[bytes]:
        return self._set("SELECT root FROM heads WHERE head IN ({})", [head])

    def eviction_reason(self, key: bytes) -> str:
        row = self.one("SELECT reason FROM ghosts WHERE key = ?", key)
        return row[0] if row else ""

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        """Return the child that shares the longest prefix: one of the two neighbours in token order."""
        sql = f"SELECT key, tokens FROM blocks WHERE parent = ? AND kind = {BLOCK} AND owner IS NULL AND tokens "
        wanted = k.sortable(tokens)
        rows = [
            self.one(sql + ">= ? ORDER BY tokens LIMIT 1", parent, wanted),
            self.one(sql + "< ? ORDER BY tokens DESC LIMIT 1", parent, wanted),
        ]
        children = [Child(row[0], k.sortable(row[1])) for row in rows if row is not None]
        return max(children, key=lambda child: k.common(child.tokens, tokens), default=None)

    def like(self, ns: k.Namespace) -> bytes | None:
        """Return the key of a prompt's first block of the same model, policy, dtype and block size, of any tenant."""
        roots = self.rows(
            "SELECT root FROM namespaces WHERE model = ? AND policy = ? AND dtype = ? AND block = ?",
            ns.model, ns.policy, ns.dtype, ns.block,
        )  # fmt: skip
        for (root,) in roots:
            sql = f"SELECT key FROM blocks WHERE parent = ? AND kind = {BLOCK} AND owner IS NULL "
            row = self.one(sql + "ORDER BY length(tokens) DESC LIMIT 1", root)
            if row is not None:
                return bytes(row[0])
        return None

    def _set(self, sql: str, keys: Sequence[bytes]) -> set[bytes]:
        return {row[0] for row in self.among(sql, keys)}
