"""What can go wrong with a disk or an index, in words; and making files durable."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from pathlib import Path

from kvlab.store.ssd.index import GARBLED

TROUBLE = (OSError, sqlite3.Error, *GARBLED)


def sync_path(path: str | Path) -> None:
    """Make a file or folder survive a power cut; nothing where it is gone. Raises ``OSError``."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return  # evicted since
    try:
        full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves data in the drive's cache
        if full is not None:
            fcntl.fcntl(fd, full)
        else:
            os.fsync(fd)
    finally:
        os.close(fd)


def damaged(error: Exception) -> bool:
    """Whether an error means that the index itself is broken, rather than busy, full or out of reach."""
    if isinstance(error, sqlite3.Error):
        codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        return isinstance(error, sqlite3.IntegrityError) or getattr(error, "sqlite_errorcode", 0) & 0xFF in codes
    return isinstance(error, GARBLED)


def in_words(error: Exception) -> str:
    """One line for a warning."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"index: {error}"
