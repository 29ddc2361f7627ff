"""Keep blocks on SSD: one file each, in a folder that several processes and models share under one byte budget.

Files are written aside and renamed into place. A killed process loses nothing that was written; against a power cut,
``sync`` flushes the files and the index, and ``Store.flush`` calls it: what was not synced may be lost then, and a
file that is short or garbled fails its checksum and is a miss.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from kvlab.errors import StoreError
from kvlab.store.blocks import Block, Child
from kvlab.store.errors import TierCorrupt, TierMiss, TierUnreadable
from kvlab.store.keys import Namespace
from kvlab.store.protocols import IsPinned, OnDropped
from kvlab.store.read_buffers import ReadBuffer
from kvlab.store.replacement import check_replacement
from kvlab.store.ssd import blockfile
from kvlab.store.ssd.durability import TROUBLE, UNREAD, damaged, flush_drive, in_words, is_lost, sync_files
from kvlab.store.ssd.eviction import Evictor
from kvlab.store.ssd.folder import ReadOnlyFolder, StoreFolder, folder_problems
from kvlab.store.ssd.index_reader import IndexReader
from kvlab.store.ssd.no_links import ForeignEntry
from kvlab.store.ssd.page_cache import forget_pages
from kvlab.store.ssd.write_transaction import WriteTransaction
from kvlab.tiers import SSD

RETRY_S = 30.0
"""Seconds for which a tier in trouble takes nothing."""

log = logging.getLogger("kvlab.store")
T = TypeVar("T")


@dataclass(frozen=True)
class SsdConfig:
    """Describes an SSD tier. Impossible settings raise ``StoreError``.

    Attributes:
        directory: the folder of blocks and index; several processes and models may share it.
        budget: bytes that the whole folder may hold.
        replace: replacement policy.
        write_cap: bytes that all processes together may write into the folder on one day (UTC); None is no limit.
    """

    name: ClassVar[str] = SSD.name
    directory: Path
    budget: int
    replace: str = "lru"
    write_cap: int | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise StoreError(f"{self.budget} bytes are not a budget of the SSD tier; use 1 or more")
        if self.write_cap is not None and self.write_cap < 0:
            raise StoreError(f"write_cap={self.write_cap} is not a number of bytes a day; use 0 or more")
        check_replacement(self.replace)

    def open(self, *, pinned: IsPinned, dropped: OnDropped) -> SsdTier:
        return SsdTier(self, pinned, dropped)


class SsdTier:
    """Implements ``Tier``: ``pinned`` says which blocks must stay, ``dropped`` is called for each that has left.

    In trouble (full disk, read-only or deleted folder, damaged index) it warns once, takes nothing, serves what can
    still be read, and tries again after a while.
    """

    name = SSD.name

    def __init__(self, config: SsdConfig, pinned: IsPinned, dropped: OnDropped) -> None:
        self._config, self._pinned, self._dropped = config, pinned, dropped
        self.directory = config.directory
        self._counts: Counter[str] = Counter()
        self._trouble = ""
        self._warned = False
        self._reopen = False
        self._retry_at = 0.0
        self._unsynced: set[str] = set()
        self._avoided: dict[bytes, float] = {}  # blocks that the index names but cannot be read, and until when
        self._folder: StoreFolder | None = None  # to write to
        self._layout: ReadOnlyFolder | None = None  # to read from: the same, or as much of it as can be opened
        self._open()

    # -- trouble ------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        config = self._config
        try:
            folder = StoreFolder(self.directory)
        except StoreError:
            raise
        except TROUBLE as error:
            self._fail(error)
            with contextlib.suppress(*TROUBLE):  # full or read-only: what is there can still be read
                self._layout = ReadOnlyFolder(self.directory)
            return
        self._evictor = Evictor(folder, config.budget, config.replace, self._pinned, self._dropped)
        self._transaction = WriteTransaction(folder, self._evictor, self._pinned, self._counts, config.write_cap)
        self._unsynced, self._avoided = set(), {}
        self._folder = self._layout = folder
        try:
            with folder.index.write():
                self._evictor.make_space(0)  # the budget may be lower than before, or files were found
        except TROUBLE as error:
            self._fail(error)
        for key, nbytes in folder.lost.items():
            self._dropped(key, nbytes, "corrupt")

    def _fail(self, error: Exception) -> None:
        self._trouble = in_words(error)
        self._retry_at = time.monotonic() + RETRY_S
        self._counts["failures"] += 1
        if self._folder is not None:
            self._evictor.reset()  # what it evicted may have been rolled back
            if damaged(error):
                self._reopen = True
                self._folder.mark_suspect()
        if not self._warned:
            self._warned = True
            log.warning("kvlab store: %s: %s; nothing more is written for now", self.directory, self._trouble)

    def _ready(self) -> StoreFolder | None:
        """Return the folder if it can be written to; open it anew after it was deleted or damaged."""
        if self._trouble and time.monotonic() < self._retry_at:
            return None
        if self._folder is not None and self._deleted(self._folder):
            return None
        if self._folder is None or self._reopen:
            self.close()
            self._reopen = False
            with contextlib.suppress(StoreError):  # by now a newer kvlab has taken the folder over
                self._open()
        if self._folder is not None:
            self._trouble = ""
        return self._folder

    def _deleted(self, folder: ReadOnlyFolder) -> bool:
        """Tell whether the folder was deleted, and close it then: writes to SQLite's open files would be lost."""
        if folder.view.in_place():
            return False
        self._fail(FileNotFoundError(errno.ENOENT, "the folder was deleted"))
        self.close()
        return True

    # -- looking up ------------------------------------------------------------------------------------------------

    def _query(self, ask: Callable[[IndexReader], T], otherwise: T) -> T:
        layout = self._layout
        if layout is None:
            return otherwise
        try:
            return ask(layout.view)
        except TROUBLE as error:
            if layout is self._layout:  # else it was closed under this thread
                self._fail(error)
            return otherwise

    def contains(self, keys: Sequence[bytes]) -> set[bytes]:
        found = self._query(lambda view: view.contains(keys), set[bytes]()) if keys else set[bytes]()
        return {key for key in found if not self._avoids(key)} if self._avoided else found

    def with_checkpoints(self, parents: Sequence[bytes]) -> set[bytes]:
        return self._query(lambda view: view.with_checkpoints(parents), set())

    def nearest(self, parent: bytes, tokens: bytes) -> Child | None:
        child = self._query(lambda view: view.nearest(parent, tokens), None)
        return None if child is None or self._avoids(child.key) else child

    def _avoids(self, key: bytes) -> bool:
        return time.monotonic() < self._avoided.get(key, 0.0)

    def eviction_reason(self, key: bytes) -> str:
        if self._avoids(key):
            return TierUnreadable.reason
        return self._query(lambda view: view.eviction_reason(key), "")

    def roots_of(self, head: bytes) -> set[bytes]:
        return self._query(lambda view: view.roots_of(head), set())

    def nbytes(self) -> int:
        return self._query(lambda view: view.sum("bytes"), 0)

    def stats(self) -> dict[str, Any]:
        return {
            "bytes": self.nbytes(),
            "blocks": self._query(lambda view: view.sum("blocks"), 0),
            "folder_bytes_written": self._query(lambda view: view.sum("written"), 0),
            **{name: self._counts[name] for name in ("bytes_written", "refused", "capped", "failures", "unreadable")},
            "trouble": self._trouble,
        }

    def problems(self) -> list[str]:
        folder = self._folder
        try:
            return folder_problems(folder) if folder is not None else []
        except TROUBLE as error:
            return [f"{self.directory}: {in_words(error)}"]

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, key: bytes) -> Block:
        return self._read(key, lambda path: blockfile.read(path, key))

    def read_to(self, key: bytes, buffer: ReadBuffer) -> Block | None:
        return self._read(key, lambda path: blockfile.read_to(path, key, buffer))

    def timed_read(self, ns: Namespace) -> tuple[int, float] | None:
        layout = self._layout
        key = self._query(lambda view: view.like(ns), None)
        if layout is None or key is None:
            return None
        try:
            forget_pages(layout.file(key))
            started = time.perf_counter()
            return blockfile.read(layout.file(key), key).length, time.perf_counter() - started
        except UNREAD:  # whatever it is, the request that reads it will find out
            return None

    def _read(self, key: bytes, read: Callable[[str], T]) -> T | Block:
        layout = self._layout
        if layout is None:
            raise TierMiss("the tier is not there")
        try:
            return read(layout.file(key))
        except UNREAD as error:
            if self._deleted(layout):
                raise TierMiss(str(error)) from None
            if not is_lost(layout.file(key), error):
                raise self._out_of_reach(key, error) from None
            if not isinstance(layout, StoreFolder):
                self._avoided[key] = math.inf
                raise TierMiss(str(error)) from None
            return self._read_locked(layout, key)

    def _out_of_reach(self, key: bytes, error: Exception) -> TierUnreadable:
        """Leave a block alone for a while that cannot be read now; return the miss to raise."""
        self._avoided = {old: until for old, until in self._avoided.items() if until > time.monotonic()}
        self._avoided[key] = time.monotonic() + RETRY_S
        self._counts["unreadable"] += 1
        return TierUnreadable(f"{key.hex()}: {in_words(error)}")

    def quarantine(self, key: bytes) -> None:
        folder = self._folder
        if folder is not None:
            with contextlib.suppress(TierMiss):
                self._read_locked(folder, key, trust=False)

    def _read_locked(self, folder: StoreFolder, key: bytes, *, trust: bool = True) -> Block:
        """Read again with the folder's write lock held, so that no other process changes the file meanwhile.

        A bad block is set aside. Without ``trust`` the index has named the wrong block: where the file is sound, the
        index is not, and is rebuilt from the files at the next opening.
        """
        nbytes = 0
        try:
            with folder.index.write():
                row = folder.index.one("SELECT bytes FROM blocks WHERE key = ? AND owner IS NULL", key)
                if row is None:
                    raise TierMiss("it was evicted")
                nbytes = row[0]
                try:
                    block = blockfile.read(folder.path(key), key)
                    if trust:
                        return block
                    raise sqlite3.IntegrityError("it names the wrong blocks")
                except UNREAD as error:
                    if not is_lost(folder.file(key), error):
                        raise self._out_of_reach(key, error) from None
                    reason = str(error)
                folder.set_aside(key)
        except TROUBLE as error:
            self._fail(error)
            raise self._out_of_reach(key, error) from None
        self._dropped(key, nbytes, "corrupt")
        raise TierCorrupt(f"{key.hex()}: {reason}")

    # -- changing -----------------------------------------------------------------------------------------------

    def touch(self, keys: Sequence[bytes]) -> None:
        if self._folder is not None:
            self._transaction.touch(keys)

    def delete(self, keys: Sequence[bytes]) -> None:
        if self._folder is not None:
            self._transaction.mark_deleted(keys)

    def write(self, blocks: Sequence[Block], heads: Sequence[tuple[bytes, bytes]] = ()) -> set[bytes]:
        if self._ready() is None:
            return set()
        try:
            held, reserved = self._transaction.reserve(blocks, heads)
        except TROUBLE as error:
            self._fail(error)
            return set()
        written: set[bytes] = set()
        failure: Exception | None = None
        try:
            for block, parts in reserved:
                try:
                    self._unsynced.add(self._transaction.write(block.key, parts))
                except ForeignEntry:  # somebody else's link or folder has its place, and keeps it
                    self._counts["refused"] += 1
                else:
                    written.add(block.key)
        except OSError as error:
            failure = error
        try:
            self._transaction.commit(written, reserved)
        except TROUBLE as error:
            failure, written = error, set()
        if failure is not None:
            self._fail(failure)
        for key in written:
            self._avoided.pop(key, None)
        return held | written

    def note(self, counters: Mapping[str, int]) -> None:
        folder = self._ready()
        if folder is None:
            return
        try:
            with folder.index.write():
                self._transaction.apply_pending()
                self._evictor.make_space(0)  # the budget may have been lowered since
                folder.index.session(folder.owner.name, counters)
        except TROUBLE as error:
            self._fail(error)

    def sync(self) -> bool:
        folder = self._ready()
        if folder is None:
            return False
        paths, self._unsynced = self._unsynced, set()
        folders = {os.path.dirname(path) for path in paths} | {str(folder.blocks)}
        try:
            sync_files(paths, folders)
            folder.index.sync()
            flush_drive(folder.blocks)
        except TROUBLE as error:
            self._fail(error)
            return False
        return True

    def close(self) -> None:
        layout, self._folder, self._layout = self._layout, None, None
        if layout is not None:
            layout.close()
