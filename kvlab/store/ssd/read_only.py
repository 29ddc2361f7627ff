"""Read an index without changing a byte of its folder, also while another process writes to it or is stopped."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from pathlib import Path


class ReadOnlyConnection:
    """Holds a connection ``db`` that only reads. Raises ``sqlite3.Error`` or ``OSError``.

    With a log and its shared memory there, SQLite's own locks make the view a consistent one. A log without the memory
    (a copied folder, a power cut) is read from a copy elsewhere, since SQLite would have to make the memory. Without a
    log, the file alone is the index; ``is_outdated`` then tells whether a writer has come meanwhile.
    """

    def __init__(self, path: Path, wait: float) -> None:
        self._path = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._seen: tuple[int, int] | None = None
        log, memory = _size(f"{path}-wal"), _size(f"{path}-shm")
        if log is not None and memory is not None:
            self.db = _connect(path, "mode=ro&readonly_shm=1", wait)
        elif log:
            self.db = self._connect_to_copy(wait)
        else:
            self._seen = _state(path)
            self.db = _connect(path, "mode=ro&immutable=1", wait)

    def _connect_to_copy(self, wait: float) -> sqlite3.Connection:
        self._copy = tempfile.TemporaryDirectory(prefix="kvlab-index-")
        try:
            for suffix in ("", "-wal"):
                shutil.copyfile(f"{self._path}{suffix}", f"{self._copy.name}/index{suffix}")
            return _connect(Path(self._copy.name, "index"), "mode=rw", wait)
        except BaseException:
            self._copy.cleanup()
            raise

    def is_outdated(self) -> bool:
        """Tell whether what was read may be a mixture, because a writer came where there was none."""
        return self._seen is not None and (self._seen != _state(self._path) or bool(_size(f"{self._path}-wal")))

    def close(self) -> None:
        self.db.close()
        if self._copy is not None:
            self._copy.cleanup()


def _connect(path: Path, how: str, wait: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{how}"
    return sqlite3.connect(uri, uri=True, timeout=wait, isolation_level=None, check_same_thread=False)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _state(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns
