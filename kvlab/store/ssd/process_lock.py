"""Who is writing in a shared folder, and whether that process still lives."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path


class ProcessLock:
    """A name that is alive as long as this object's lock file is locked: a killed process loses it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        while True:
            self.name = uuid.uuid4().hex
            path = folder / f"{self.name}.lock"
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                if os.stat(path).st_ino == os.fstat(self._fd).st_ino:
                    return
            except FileNotFoundError:
                pass  # a sweep took it for dead before it was locked
            os.close(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            (self._folder / f"{self.name}.lock").unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def alive(folder: Path, name: str) -> bool:
    """Whether the owner ``name`` still holds its lock; removes what a dead one left."""
    path = folder / f"{name}.lock"
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(fd)


def names(folder: Path) -> list[str]:
    """All owners that have a lock file, alive or not."""
    return [path.stem for path in folder.glob("*.lock")]
