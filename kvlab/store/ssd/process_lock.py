"""Name the processes that write in a shared folder, and tell whether they are alive."""

from __future__ import annotations

import fcntl
import os
import uuid
from pathlib import Path


class ProcessLock:
    """Holds a name that is alive as long as its file is locked; the lock of a killed process is released at once."""

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
    """Tell whether the owner ``name`` still holds its lock; remove the file of a dead one."""
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
    """Return all owners that have a lock file, alive or not."""
    return [path.stem for path in folder.glob("*.lock")]
