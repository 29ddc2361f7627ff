"""Open a store folder after any accident, and set bad files aside.

    catalog.sqlite      the index (WAL)
    blocks/a/<key>      one file a block, see blockfile.py
    tmp/<owner>-<n>     files being written
    owners/<owner>.lock held while a store has the folder open
    quarantine/         the last bad files, for inspection; never read again
    ballast             space that is freed when the disk is too full to open the index
    catalog.suspect     there when the index proved damaged in use; the next start rebuilds it from the blocks

A row is inserted, with its owner, before the file of that name appears, and loses its owner once the file is complete.
So a row with a dead owner, a file without a row and a temporary file of a dead owner are all leftovers of a crash, and
can be swept at any time while others write.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from kvlab.errors import StoreError
from kvlab.store import keys as k
from kvlab.store.blocks import Block
from kvlab.store.ssd import blockfile
from kvlab.store.ssd import process_lock as owners
from kvlab.store.ssd.index import GARBLED, SsdIndex
from kvlab.store.ssd.index_reader import IndexReader

MAX_QUARANTINED_FILES = 16

BALLAST_BYTES = 128 << 10
"""Bytes set aside for opening the index on a full disk."""

log = logging.getLogger("kvlab.store")


class ReadOnlyFolder:
    """Reads from a folder. Raises ``OSError`` or ``sqlite3.Error`` when ``root`` holds no store."""

    view: IndexReader

    def __init__(self, root: Path) -> None:
        self.root, self.blocks = root, root / "blocks"
        self._blocks = str(self.blocks)
        self._open()

    def _open(self) -> None:
        self.view = IndexReader(self.root / "catalog.sqlite", immutable=True)

    def file(self, key: bytes) -> str:
        """Return the path of a block."""
        name = key.hex()
        return f"{self._blocks}/{name[0]}/{name}"  # few folders: each one written to costs a sync at a flush

    def path(self, key: bytes) -> Path:
        """Return the path of a block as a Path, which takes longer to make than a block to open."""
        return Path(self.file(key))

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.view.close()


class StoreFolder(ReadOnlyFolder):
    """Writes to a folder, private to the user. Raises ``OSError``, ``sqlite3.Error`` or ``StoreError``."""

    def _open(self) -> None:
        root = self.root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.tmp, self.quarantine = root / "tmp", root / "quarantine"
        self.owners, self.suspect = root / "owners", root / "catalog.suspect"
        for folder in (self.blocks, self.tmp, self.quarantine, self.owners):
            folder.mkdir(mode=0o700, exist_ok=True)
        self.ballast = root / "ballast"
        with self._alone():
            try:
                self.index = self._open_index()
            except (OSError, sqlite3.OperationalError):
                if not self.ballast.exists():
                    raise
                self.ballast.unlink()  # a full disk has no space for SQLite's own files, unless some was set aside
                self.index = self._open_index()
        try:
            self._keep_ballast()
            self.view = IndexReader(self.index.path)
            self.owner = owners.ProcessLock(self.owners)
            self.sweep()
            with self.index.write():
                self.index.trim_sessions()
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let only one process at a time open, create or rebuild the index."""
        fd = os.open(self.root / "open.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _open_index(self) -> SsdIndex:
        path = self.root / "catalog.sqlite"
        try:
            if self.suspect.exists():
                raise sqlite3.DatabaseError("reported by the last store that used it")
            index = SsdIndex(path)
        except (sqlite3.DatabaseError, *GARBLED) as error:
            if isinstance(error, (sqlite3.OperationalError, StoreError)):
                raise  # locked, full, read-only, or of a newer format: the index itself may be fine
            log.warning("kvlab store: the index of %s is damaged (%s); it is rebuilt from the blocks", self.root, error)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._set_aside(path)
            self.suspect.unlink(missing_ok=True)
            index = SsdIndex(path)
        if not index.sum("indexed"):  # new, or killed before it knew what there is
            self._rebuild(index)
        return index

    def _keep_ballast(self) -> None:
        if self.ballast.exists():
            return
        fd = os.open(self.ballast, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(fd, b"\xff" * BALLAST_BYTES)
        except OSError:
            self.ballast.unlink(missing_ok=True)  # the disk is full
        finally:
            os.close(fd)

    def files(self) -> Iterator[Path]:
        """Yield every file under blocks/, in order."""
        for folder in sorted(self.blocks.iterdir()):
            if folder.is_dir():
                yield from sorted(folder.iterdir())
            else:
                yield folder

    def _rebuild(self, index: SsdIndex) -> None:
        """Index the files that are there; their payloads are verified when they are read."""
        with index.write():
            for path in list(self.files()):
                try:
                    block, size = blockfile.read_header(path)
                    if path != self.path(block.key):
                        raise blockfile.BadBlock("it does not lie where its key says")
                except (blockfile.BadBlock, OSError):
                    self._set_aside(path)
                    continue
                insert(index, [(replace(block, used=path.stat().st_mtime), size)], None)
            index.add(indexed=1)

    def sweep(self) -> int:
        """Remove what dead processes left behind; return the number of files and rows removed."""
        swept = 0
        dead: dict[str, bool] = {}

        def gone(owner: str) -> bool:
            if owner not in dead:
                dead[owner] = owner != self.owner.name and not owners.alive(self.owners, owner)
            return dead[owner]

        for name in owners.names(self.owners):
            gone(name)
        for key, owner in self.index.rows("SELECT key, owner FROM blocks WHERE owner IS NOT NULL"):
            if gone(owner):
                with self.index.write():
                    swept += self.drop_unfinished(key, owner)
        for path in self.tmp.iterdir():
            if gone(path.name.partition("-")[0]):
                path.unlink(missing_ok=True)
                swept += 1
        return swept + (self._reconcile() if any(dead.values()) else 0)

    def _reconcile(self) -> int:
        """Forget rows whose file is gone, as a killed eviction leaves them, and set aside files that were cut."""
        wrong = 0
        with self.index.write():
            for key, size in self.index.rows("SELECT key, bytes FROM blocks WHERE owner IS NULL"):
                try:
                    if self.path(key).stat().st_size == size:
                        continue
                    self.set_aside(key)
                except FileNotFoundError:
                    self.index.forget(key, "evicted")
                wrong += 1
        return wrong

    def drop_unfinished(self, key: bytes, owner: str) -> int:
        """Remove the row of a writer that died before it finished, and its file; inside ``write``."""
        if self.index.one("SELECT 1 FROM blocks WHERE key = ? AND owner = ?", key, owner) is None:
            return 0
        self.path(key).unlink(missing_ok=True)
        self.index.forget(key, None)
        return 1

    def set_aside(self, key: bytes) -> None:
        """Quarantine the file of a key and forget its row; inside ``write``."""
        self._set_aside(self.path(key))
        self.index.forget(key, "corrupt")

    def _set_aside(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            os.replace(path, self.quarantine / f"{time.time_ns()}-{path.name}")
        with contextlib.suppress(OSError):
            for old in sorted(self.quarantine.iterdir())[:-MAX_QUARANTINED_FILES]:
                old.unlink(missing_ok=True)

    def close(self) -> None:
        for part in ("owner", "view", "index"):  # any may be missing when opening failed
            with contextlib.suppress(OSError, sqlite3.Error):
                if part in vars(self):
                    vars(self)[part].close()


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


def folder_problems(folder: StoreFolder) -> list[str]:
    """Return the contradictions between index and files, without reading payloads. Writers wait meanwhile."""
    found: list[str] = []
    index = folder.index
    with index.write():
        rows = index.rows("SELECT key, bytes, owner FROM blocks")
        if index.sum("bytes") != sum(row[1] for row in rows) or index.sum("blocks") != len(rows):
            found.append("SSD: the sums of bytes and blocks are off")
        expected = {folder.path(key): size for key, size, owner in rows if owner is None}
        unfinished = {folder.path(key) for key, _, owner in rows if owner is not None}
        for path, size in expected.items():
            try:
                if path.stat().st_size != size:
                    found.append(f"SSD: {path.name[:16]} has {path.stat().st_size} bytes, not {size}")
            except OSError:
                found.append(f"SSD: {path.name[:16]} is in the index but not there")
        for path in folder.files():
            if path not in expected and path not in unfinished:
                found.append(f"SSD: {path.name[:16]} is there but not in the index")
    return found
