"""Make files survive a power cut; say in words what can go wrong with a disk or an index."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvlab.errors import StoreError
from kvlab.store.ssd.blockfile import BadBlock
from kvlab.store.ssd.index import GARBLED

CONCURRENT_SYNCS = 4
"""Files synced at once: a journal commits them together."""

TROUBLE = (OSError, MemoryError, sqlite3.Error, *GARBLED)

UNREAD = (OSError, MemoryError, BadBlock)
"""What reading a block raises; see :func:`is_lost` for which of it means that the block is no more."""


def sync_files(paths: Iterable[str], folders: Iterable[str]) -> None:
    """Hand files, and then the folders that name them, to the drive. Raises ``OSError``.

    Where :func:`flush_drive` has something to do, the drive may still hold them in its own cache.
    """
    with ThreadPoolExecutor(CONCURRENT_SYNCS, thread_name_prefix="kvlab-store-sync") as pool:
        for batch in (paths, folders):
            list(pool.map(sync_path, batch))


def sync_path(path: str | Path) -> None:
    """Hand a file or folder to the drive; do nothing where it is gone. Raises ``OSError``."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return  # evicted since
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flush_drive(path: str | Path) -> None:
    """Have the drive that holds ``path`` write its own cache down, where ``fsync`` does not. Raises ``OSError``.

    That is macOS: there one ``F_FULLFSYNC`` covers all that was handed to the drive before, so one a batch is enough.
    Volumes that refuse it (network, some external drives) get a plain ``fsync``.
    """
    full_flush = getattr(fcntl, "F_FULLFSYNC", None)
    if full_flush is None:
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.fcntl(fd, full_flush)
        except OSError:
            os.fsync(fd)
    finally:
        os.close(fd)


def is_lost(path: str | Path, error: Exception) -> bool:
    """Tell whether a block that was not read is gone or bad for good, rather than out of reach for now.

    A bad payload or a missing file is lost. Rights, a full table of open files, a disk or network that fails, and
    memory may be there again later: then the file is sound as far as is known, and must stay.
    """
    if isinstance(error, BadBlock):
        return True
    try:
        return not stat.S_ISREG(os.lstat(path).st_mode)  # a link or a folder in its place is not the file
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def damaged(error: Exception) -> bool:
    """Tell whether an error means that the index itself is broken, rather than busy, full or out of reach."""
    if isinstance(error, sqlite3.Error):
        codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        return isinstance(error, sqlite3.IntegrityError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in codes
    return isinstance(error, GARBLED) and not isinstance(error, StoreError)


def needs_space(error: Exception) -> bool:
    """Tell whether an error may come from a full disk: SQLite does not always say so."""
    if isinstance(error, sqlite3.Error):
        codes = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in codes
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def in_words(error: Exception) -> str:
    """Return one line for a warning."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    return f"index: {error}"
