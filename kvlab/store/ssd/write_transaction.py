"""Write blocks into a shared folder: reserve space under its lock, write files without the lock, then commit.

Reserved bytes count from the reservation on, so the budget holds whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from kvlab.store import keys as k
from kvlab.store.blocks import BLOCK, Block
from kvlab.store.ssd import blockfile, layout, no_links
from kvlab.store.ssd import process_lock as owners
from kvlab.store.ssd.eviction import Evictor
from kvlab.store.ssd.folder import StoreFolder
from kvlab.store.ssd.insertion import insert

Reserved = list[tuple[Block, list[blockfile.Buffer]]]


class WriteTransaction:
    """Writes into ``folder`` for one process.

    Every method except ``touch`` and ``mark_deleted`` may raise OSError or sqlite3.Error.
    """

    def __init__(
        self,
        folder: StoreFolder,
        evictor: Evictor,
        pinned: Callable[[bytes], bool],
        counts: Counter[str],
        write_cap: int | None,
    ) -> None:
        self._folder, self._evictor, self._pinned, self._counts = folder, evictor, pinned, counts
        self._write_cap = write_cap
        self._lock = threading.Lock()  # guards the two below
        self._uses: dict[bytes, tuple[float, int]] = {}
        self._deleted_keys: set[bytes] = set()

    def touch(self, keys: Sequence[bytes]) -> None:
        """Note a use, for the next transaction to record."""
        now = time.time()
        with self._lock:
            for i, key in enumerate(keys):
                self._uses[key] = (now + i * 1e-6, self._uses.get(key, (0.0, 0))[1] + 1)

    def mark_deleted(self, keys: Sequence[bytes]) -> None:
        """Note blocks for the next transaction to delete."""
        with self._lock:
            self._deleted_keys.update(keys)

    def apply_pending(self) -> None:
        """Record the uses and make the deletions noted so far; inside ``write``."""
        with self._lock:
            uses, self._uses = self._uses, {}
            deleted = {key for key in self._deleted_keys if not self._pinned(key)}
            self._deleted_keys -= deleted
        if uses:
            self._folder.index.touch((key, when, times) for key, (when, times) in uses.items())
            for key, (when, _) in uses.items():
                self._evictor.touch(key, when)
        for key in deleted:
            if self._folder.index.one("SELECT 1 FROM blocks WHERE key = ? AND owner IS NULL", key):
                self._remove(key)

    def reserve(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]]) -> tuple[set[bytes], Reserved]:
        """Reserve space for the ``blocks`` that the folder lacks; return the keys it holds, and what to write."""
        held: set[bytes] = set()
        reserved: Reserved = []
        encoded = [blockfile.encode(block) for block in blocks]
        index, me = self._folder.index, self._folder.owner.name
        reserved_bytes = 0
        with index.write():
            self.apply_pending()
            for head, root in heads:
                index.head(head, root)
            today = index.written_on(_day())
            keys = [block.key for block in blocks]
            here = dict(index.among("SELECT key, owner FROM blocks WHERE key IN ({})", keys))
            keep = {*here, *(block.parent for block in blocks)}  # without its parent a block is never found
            for block, parts in zip(blocks, encoded, strict=True):
                if block.key in here and self._there(block.key, here[block.key], held):
                    continue
                size = blockfile.size_of(parts)
                if self._write_cap is not None and today + reserved_bytes + size > self._write_cap:
                    self._counts["capped"] += 1
                    break  # a child without its parent would never be found
                if not self._evictor.make_space(reserved_bytes + size, keep):
                    self._counts["refused"] += 1
                    break
                reserved_bytes += size
                reserved.append((block, parts))
            if reserved:
                insert(index, [(block, blockfile.size_of(parts)) for block, parts in reserved], me)
        return held, reserved

    def _there(self, key: bytes, owner: str | None, held: set[bytes]) -> bool:
        """Tell whether the folder has the block, which is then added to ``held``, or a living owner writes it."""
        if owner is None:
            held.add(key)
        elif owner == self._folder.owner.name or not owners.alive(self._folder.owners, owner):
            # A writer that was killed, or a commit of this process that failed.
            self._folder.drop_unfinished(key, owner)
            return False
        return True

    def write(self, key: bytes, parts: list[blockfile.Buffer]) -> str:
        """Write one file under another name, rename it into its place and return its path.

        Raises ``ForeignEntry`` where something that is no file of kvlab's has its place, or another ``OSError``.
        """
        root, name = self._folder.root, key.hex()
        aside = f"{self._folder.owner.name}-{name[:16]}"
        with (
            no_links.folder(root, layout.TMP, create=True) as tmp,
            no_links.folder(root, layout.BLOCKS, name[0], create=True) as shard,
        ):
            fd = no_links.create(aside, tmp)
            try:
                try:
                    blockfile.write(fd, parts)
                finally:
                    os.close(fd)
                no_links.is_file(name, shard)
                os.rename(aside, name, src_dir_fd=tmp, dst_dir_fd=shard)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(aside, dir_fd=tmp)
                raise
        return self._folder.file(key)

    def commit(self, written: set[bytes], reserved: Reserved) -> None:
        """Make the blocks that were written visible to lookups; release the reservations of the others."""
        index, total = self._folder.index, 0
        with index.write():
            index.commit(written)
            for block, parts in reserved:
                if block.key not in written:
                    self._folder.drop_unfinished(block.key, self._folder.owner.name)
                    continue
                self._drop_covered_by(block)
                total += blockfile.size_of(parts)
            index.count_written(_day(), total)
        self._counts["writes"] += len(written)
        self._counts["bytes_written"] += total

    def _drop_covered_by(self, block: Block) -> None:
        """Delete the tails that a longer block makes useless; inside ``write``."""
        if block.kind != BLOCK:
            return
        tokens = k.sortable(block.tokens)
        sql = f"SELECT key, tokens FROM blocks WHERE parent = ? AND kind = {BLOCK} AND owner IS NULL AND tokens < ? "
        while row := self._folder.index.one(sql + "ORDER BY tokens DESC LIMIT 1", block.parent, tokens):
            if not tokens.startswith(row[1]) or self._pinned(row[0]):
                return
            self._remove(row[0])

    def _remove(self, key: bytes) -> None:
        self._folder.remove_file(key)  # before the row, so that it cannot be another writer's new file
        self._folder.index.forget(key, None)
        self._evictor.gone(key)


def _day() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
