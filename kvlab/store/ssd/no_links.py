"""Create, move and remove files of a store folder without ever following a link out of it.

A path is given as the folder's root and the names below it. Each name is opened relative to the one before, and a link
is an error, so that nothing outside the root is touched even where somebody puts a link into an open store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


class ForeignEntry(OSError):
    """Raised where a link, a folder or a device stands in the place of a file of kvlab's, or a link for a folder."""


@contextlib.contextmanager
def folder(root: str | Path, *names: str, create: bool = False) -> Iterator[int]:
    """Open a folder below ``root``; with ``create``, make what is missing of it, private.

    Raises ``ForeignEntry`` or another ``OSError``.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
            inner = _inner(name, fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _inner(name: str, folder_fd: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ForeignEntry(error.errno, f"{name} is a link, or no folder") from None
        raise


def is_file(name: str, folder_fd: int) -> bool:
    """Tell whether there is a regular file; raise ``ForeignEntry`` where there is anything else."""
    try:
        mode = os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise ForeignEntry(errno.EEXIST, f"{name} is no file of kvlab's")
    return True


def create(name: str, folder_fd: int) -> int:
    """Make a new private file and open it for writing; what a crash left under its name is replaced."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        return os.open(name, flags, 0o600, dir_fd=folder_fd)
    except FileExistsError:
        if is_file(name, folder_fd):
            os.unlink(name, dir_fd=folder_fd)
        return os.open(name, flags, 0o600, dir_fd=folder_fd)


def remove(root: str | Path, *names: str) -> bool:
    """Remove a regular file; return False where there is none, or something that is no file. Raises ``OSError``."""
    with contextlib.suppress(FileNotFoundError, ForeignEntry), folder(root, *names[:-1]) as fd:
        if is_file(names[-1], fd):
            os.unlink(names[-1], dir_fd=fd)
            return True
    return False


def move(root: str | Path, source: tuple[str, ...], target: tuple[str, ...]) -> bool:
    """Move a regular file within ``root``; return False where there is none to move. Raises ``OSError``."""
    with contextlib.suppress(FileNotFoundError, ForeignEntry), folder(root, *source[:-1]) as from_fd:
        if is_file(source[-1], from_fd):
            with folder(root, *target[:-1], create=True) as to_fd:
                is_file(target[-1], to_fd)
                os.rename(source[-1], target[-1], src_dir_fd=from_fd, dst_dir_fd=to_fd)
            return True
    return False
