"""Open a store folder after any accident, and set bad files aside. What is in it: see layout.py.

A row is inserted, with its owner, before the file of that name appears, and loses its owner once the file is complete.
So a row with a dead owner, a file without a row and a temporary file of a dead owner are all leftovers of a crash, and
can be settled at any time while others write (reconcile.py).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from pathlib import Path

from kvlab.counts import counted
from kvlab.errors import StoreError
from kvlab.store.ssd import layout, marker, no_links
from kvlab.store.ssd import process_lock as owners
from kvlab.store.ssd.durability import TROUBLE, damaged, needs_space
from kvlab.store.ssd.index import GARBLED, SsdIndex
from kvlab.store.ssd.index_reader import IndexReader
from kvlab.store.ssd.quarantine import Quarantine
from kvlab.store.ssd.reconcile import reconcile

LOCK_WAIT_S = 10.0
"""Seconds to wait for another process that opens the store or writes to it."""

BALLAST_BYTES = 128 << 10
"""Bytes set aside for opening the index on a full disk."""

log = logging.getLogger("kvlab.store")


class ReadOnlyFolder:
    """Reads from a folder and never changes it. Raises ``StoreError`` for a folder that is no store.

    Opening raises ``OSError`` or ``sqlite3.Error`` where the store cannot be read.
    """

    view: IndexReader

    def __init__(self, directory: Path) -> None:
        self.root = marker.resolved(directory)
        self.blocks = self.root / layout.BLOCKS
        self._blocks = str(self.blocks)
        self.quarantine = Quarantine(self.root)
        self._open()

    def _open(self) -> None:
        marker.recognise(self.root)
        path = self.root / layout.INDEX
        if not path.exists():
            raise StoreError(f"{self.root} has no index; `kvlab store verify --repair` makes one from the blocks")
        self.view = IndexReader(path, wait=LOCK_WAIT_S, read_only=True)

    def file(self, key: bytes) -> str:
        """Return the path of a block."""
        name = key.hex()
        return f"{self._blocks}/{name[0]}/{name}"

    def path(self, key: bytes) -> Path:
        """Return the path of a block as a Path, which takes longer to make than a block to open."""
        return Path(self.file(key))

    def block_files(self) -> tuple[dict[bytes, layout.OwnFile], set[str]]:
        """Return the files that are named as blocks, by key, and the folders in blocks/ that cannot be listed."""
        files: dict[bytes, layout.OwnFile] = {}
        unlisted: set[str] = set()
        for shard in layout.SHARDS:
            try:
                found = list(layout.own_files(f"{self._blocks}/{shard}", layout.BLOCK_NAME))
            except OSError:
                unlisted.add(shard)
                continue
            files |= {bytes.fromhex(file.name): file for file in found if file.name[0] == shard}
        return files, unlisted

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.view.close()


class StoreFolder(ReadOnlyFolder):
    """Writes to a folder, private to the user. Raises ``OSError``, ``sqlite3.Error`` or ``StoreError``.

    A folder that is neither a store nor empty is refused and left as it is. One that another process keeps locked
    raises ``TimeoutError``. After the opening, index and files agree:

    Attributes:
        swept: differences between the two that were settled.
        lost: keys, with their bytes, whose file was bad or missing though the last process ended in order.
        unread: keys, with their bytes, of files that no row names since they cannot be read for now.
    """

    index: SsdIndex
    owner: owners.ProcessLock
    swept: int

    def _open(self) -> None:
        marker.claim(self.root)
        self.owners, self.unread = self.root / layout.OWNERS, dict[bytes, int]()
        self.lost: dict[bytes, int] = {}
        for name in layout.FOLDERS:
            with no_links.folder(self.root, name, create=True):
                pass
        try:
            self._open_once()
        except TROUBLE as error:
            if not damaged(error):
                raise
            self.mark_suspect()  # the damage showed only when the rows were read
            self._open_once()

    def _open_once(self) -> None:
        try:
            self._open_files()
        except (OSError, sqlite3.OperationalError) as error:
            if not needs_space(error) or not no_links.remove(self.root, layout.BALLAST):
                raise
            self._open_files()  # a full disk has no space for SQLite's own files without the ballast

    def _open_files(self) -> None:
        try:
            with owners.opening(self.root, LOCK_WAIT_S):
                self.index = self._open_index()
                with contextlib.suppress(OSError):
                    marker.renew(self.root)
            self.view = IndexReader(self.index.path, wait=LOCK_WAIT_S)
            self.owner = owners.ProcessLock(self.owners)
            self.swept = reconcile(self)
            with self.index.write():
                self.index.trim_sessions()
        except BaseException:
            self.close()
            raise
        self._keep_ballast()

    def _open_index(self) -> SsdIndex:
        path = self.root / layout.INDEX
        try:
            if (self.root / layout.SUSPECT).exists():
                raise sqlite3.DatabaseError("reported by the last store that used it")
            index = self._checked_index(path)
        except (sqlite3.DatabaseError, *GARBLED) as error:
            if isinstance(error, (sqlite3.OperationalError, StoreError)):
                raise  # locked, full, read-only, or of a newer format: the index itself may be fine
            log.warning("kvlab store: the index of %s is damaged (%s); it is rebuilt from the blocks", self.root, error)
            for name in layout.INDEX_FILES[1:]:
                no_links.remove(self.root, name)
            self.quarantine.add(layout.INDEX)
            no_links.remove(self.root, layout.SUSPECT)
            index = SsdIndex(path, wait=LOCK_WAIT_S)
        return index

    def _checked_index(self, path: Path) -> SsdIndex:
        """Open the index, and check all of it where a log was left by a crash: the two may not belong together."""
        left = _has_bytes(f"{path}-wal") and not owners.living_pids(self.root)
        index = SsdIndex(path, wait=LOCK_WAIT_S)
        try:
            if left and index.one("PRAGMA integrity_check(1)") != ("ok",):
                raise sqlite3.DatabaseError("it does not fit its log")
        except BaseException:
            index.close()
            raise
        return index

    def _keep_ballast(self) -> None:
        try:
            with no_links.folder(self.root) as root:
                if no_links.is_file(layout.BALLAST, root):
                    return
                fd = no_links.create(layout.BALLAST, root)
                try:
                    os.write(fd, b"\xff" * BALLAST_BYTES)
                finally:
                    os.close(fd)
        except OSError:
            with contextlib.suppress(OSError):
                no_links.remove(self.root, layout.BALLAST)  # the disk is full

    def mark_suspect(self) -> None:
        """Have the next opening rebuild the index. Never raises."""
        with contextlib.suppress(OSError):
            os.close(os.open(self.root / layout.SUSPECT, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600))

    def drop_unfinished(self, key: bytes, owner: str) -> int:
        """Remove the row of a writer that died before it finished, and its file; inside ``write``."""
        if self.index.one("SELECT 1 FROM blocks WHERE key = ? AND owner = ?", key, owner) is None:
            return 0
        self.remove_file(key)
        self.index.forget(key, None)
        return 1

    def remove_file(self, key: bytes) -> None:
        """Remove the file of a block, if it is there and a file. Raises ``OSError`` where that is impossible."""
        name = key.hex()
        no_links.remove(self.root, layout.BLOCKS, name[0], name)

    def set_aside(self, key: bytes) -> None:
        """Quarantine the file of a key and forget its row; inside ``write``."""
        name, before = key.hex(), self.quarantine.nbytes()
        if not self.quarantine.add(layout.BLOCKS, name[0], name):
            with contextlib.suppress(OSError):
                self.unread[key] = os.lstat(self.file(key)).st_size
                before -= self.unread[key]
        self.quarantine.trim()
        self.index.forget(key, "corrupt")
        self.index.add(unindexed=self.quarantine.nbytes() - before)

    def free_quarantined(self) -> bool:
        """Remove the oldest quarantined file for its space; return False where there is none. Inside ``write``."""
        with contextlib.suppress(OSError):
            for file in self.quarantine.files():
                if no_links.remove(self.root, layout.QUARANTINE, file.name):
                    self.index.add(unindexed=-file.size)
                    return True
        return False

    def free_unread(self) -> bool:
        """Remove a file that no row names because it cannot be read; return False where none is. Inside ``write``."""
        while self.unread:
            key, size = self.unread.popitem()
            with contextlib.suppress(OSError):
                if self.index.one("SELECT 1 FROM blocks WHERE key = ?", key) is None:  # else stored anew since
                    self.remove_file(key)
                self.index.add(unindexed=-size)
                return True
        return False

    def close(self) -> None:
        for part in ("owner", "view", "index"):  # any may be missing when opening failed
            with contextlib.suppress(OSError, sqlite3.Error):
                if part in vars(self):
                    vars(self)[part].close()


def folder_problems(folder: StoreFolder) -> list[str]:
    """Return the contradictions between index and files, without reading payloads. Writers wait meanwhile."""
    found: list[str] = []
    index = folder.index
    with index.write():
        rows = index.rows("SELECT key, bytes, owner FROM blocks")
        files, unlisted = folder.block_files()
        if index.sum("bytes") != sum(row[1] for row in rows) or index.sum("blocks") != len(rows):
            found.append("SSD: the sums of bytes and blocks are off")
        for key, size, owner in rows:
            file, name = files.pop(key, None), key.hex()
            if owner is not None or name[0] in unlisted:
                continue
            if file is None:
                found.append(f"SSD: {name[:16]} is in the index but not there")
            elif file.size != size:
                found.append(f"SSD: {name[:16]} has {counted(file.size, 'byte')}, not {size}")
        found += [f"SSD: {key.hex()[:16]} is there but not in the index" for key in files if key not in folder.unread]
    return found


def _has_bytes(path: str) -> bool:
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False
