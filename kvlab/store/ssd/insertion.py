"""Add the rows of blocks to the index."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvlab.store import keys as k
from kvlab.store.blocks import Block
from kvlab.store.ssd.index import SsdIndex


def insert(index: SsdIndex, blocks: Sequence[tuple[Block, int]], owner: str | None) -> None:
    """Add the rows of blocks, each with the size of its file, and count their bytes; inside ``write``."""
    now = time.time()
    spaces = {block.ns for block, _ in blocks}
    index.many(
        "INSERT OR IGNORE INTO namespaces VALUES (?, ?, ?, ?, ?, ?, ?)",
        [(ns.root(), ns.model, ns.policy, ns.dtype, ns.block, ns.tenant, now) for ns in spaces],
    )
    index.many(
        "INSERT INTO blocks (key, parent, root, kind, tokens, start, bytes, cost, created, used, uses, owner) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (block.key, block.parent, block.ns.root(), block.kind, k.sortable(block.tokens), block.start, size,
             block.cost, now, block.used, block.uses, owner)
            for block, size in blocks
        ],
    )  # fmt: skip
    index.many("DELETE FROM ghosts WHERE key = ?", [(block.key,) for block, _ in blocks])
    index.add(bytes=sum(size for _, size in blocks), blocks=len(blocks))
