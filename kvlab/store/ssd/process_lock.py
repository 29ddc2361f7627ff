"""Name the processes that write in a shared folder, tell whether they are alive, and let one at a time open the index.

Each lock file holds the number of its process, so that whoever waits for it in vain can be told.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from kvlab.store.ssd import layout

POLL_S = 0.02
"""Seconds between two attempts to take a lock that another process holds."""

MAX_PID_BYTES = 20


class ProcessLock:
    """Holds a name that is alive as long as its file is locked; the lock of a killed process is released at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        while True:
            self.name = uuid.uuid4().hex
            path = folder / f"{self.name}.lock"
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                if os.stat(path).st_ino == os.fstat(self._fd).st_ino:
                    _write_pid(self._fd)
                    return
            except FileNotFoundError:
                pass  # a sweep took it for dead before it was locked
            os.close(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                (self._folder / f"{self.name}.lock").unlink()
            os.close(self._fd)
            self._fd = -1


def alive(folder: Path, name: str) -> bool:
    """Tell whether the owner ``name`` still holds its lock; change nothing. Raises ``OSError``."""
    try:
        fd = os.open(folder / f"{name}.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def bury(folder: Path, name: str) -> bool:
    """Remove the lock file of a dead owner; return False for one that is alive. Raises ``OSError``."""
    path = folder / f"{name}.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            return True
        raise
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            path.unlink(missing_ok=True)
        return True
    finally:
        os.close(fd)


def names(folder: Path) -> list[str]:
    """Return all owners that have a lock file, alive or not."""
    return [file.name.removesuffix(".lock") for file in layout.own_files(folder, layout.LOCK_NAME)]


def living_pids(root: Path) -> list[int]:
    """Return the numbers of the processes that have the store in ``root`` open, this one left out."""
    owners = root / layout.OWNERS
    pids = [_pid(owners / f"{name}.lock") for name in names(owners) if alive(owners, name)]
    return sorted({pid for pid in pids if pid not in (None, os.getpid())})  # type: ignore[type-var]


@contextlib.contextmanager
def opening(root: Path, wait: float) -> Iterator[None]:
    """Let one process at a time open, create or rebuild the index; raise ``TimeoutError`` after ``wait`` seconds."""
    path = root / layout.OPEN_LOCK
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        _flock(fd, wait, lambda: is_held_by(root, [pid for pid in [_pid(path)] if pid is not None]))
        _write_pid(fd)
        yield
    finally:
        os.close(fd)


def is_held_by(root: Path, pids: list[int]) -> str:
    """Return the line that says which processes keep others waiting, and what to do about it."""
    if not pids:
        return f"{root} is held by another process, which does not go on; continue or end it, and try again"
    who = " and ".join([", ".join(map(str, pids[:-1])), str(pids[-1])]) if len(pids) > 1 else str(pids[0])
    word = "processes" if len(pids) > 1 else "process"
    return f"{root} is held by {word} {who}; if stopped, continue it (kill -CONT {pids[0]}) or end it, and try again"


def _flock(fd: int, wait: float, held: Callable[[], str]) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(held()) from None
        time.sleep(POLL_S)


def _write_pid(fd: int) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds without it
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)


def _pid(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        text = os.read(fd, MAX_PID_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    return int(text) if text.isdigit() else None
