"""Keep KV files of one client in a folder of its own: written whole or not at all, private, links not followed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Sequence

from kvlab import paths
from kvlab.server.errors import ApiError
from kvlab.store.ssd import no_links

FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_KEPT = re.compile(rf"({FILE_NAME.pattern})\.kv")
_UNFINISHED = re.compile(rf"\.{FILE_NAME.pattern}-[0-9a-f]{{16}}\.new")

MAX_UNFINISHED_AGE_S = 3600.0
"""Seconds after which a file that is not finished was left by a killed process."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class KVFolder:
    """Reads and writes ``slots/<client>`` under ``KVLAB_HOME``. Raises ``ApiError`` where that is impossible."""

    def __init__(self, tenant: str) -> None:
        self._names = ("slots", tenant or "open")

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file by name."""
        with _explained("listed"):
            try:
                with self._opened() as folder:
                    entries = [(name, os.stat(name, dir_fd=folder, follow_symlinks=False)) for name in _kept(folder)]
            except FileNotFoundError:
                return {}
        return {name.removesuffix(".kv"): found.st_size for name, found in entries if stat.S_ISREG(found.st_mode)}

    def write(self, name: str, parts: Sequence[bytes]) -> None:
        """Write a file, or replace one, durably."""
        new = f".{name}-{secrets.token_hex(8)}.new"
        with _explained("saved"), self._opened(create=True) as folder:
            _remove_unfinished(folder)
            no_links.is_file(f"{name}.kv", folder)
            try:
                fd = no_links.create(new, folder)
                try:
                    for part in parts:
                        _write_all(fd, part)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.rename(new, f"{name}.kv", src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=folder)
                raise
            os.fsync(folder)

    def read(self, name: str) -> bytes:
        """Read a file. Raises ``ApiError`` 404 where there is none."""
        with _explained("read"):
            try:
                with self._opened() as folder:
                    if not no_links.is_file(f"{name}.kv", folder):
                        raise FileNotFoundError
                    with open(os.open(f"{name}.kv", os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
                        return file.read()
            except FileNotFoundError:
                raise ApiError(404, f"nothing is saved as {name}") from None

    def erase(self, name: str) -> None:
        """Remove a file, if it is there."""
        with _explained("erased"):
            no_links.remove(paths.home(), *self._names, f"{name}.kv")

    @contextlib.contextmanager
    def _opened(self, *, create: bool = False) -> Iterator[int]:
        home = paths.home()
        if create:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with no_links.folder(home, self._names[0], create=True) as slots:
                if os.fstat(slots).st_mode & 0o077:
                    os.fchmod(slots, 0o700)  # as an earlier kvlab made it, others could list the clients
        with no_links.folder(home, *self._names, create=create) as folder:
            yield folder


def _kept(folder: int) -> list[str]:
    return sorted(filter(_KEPT.fullmatch, os.listdir(folder)))


def _remove_unfinished(folder: int) -> None:
    for name in filter(_UNFINISHED.fullmatch, os.listdir(folder)):
        with contextlib.suppress(OSError):
            found = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and time.time() - found.st_mtime > MAX_UNFINISHED_AGE_S:
                os.unlink(name, dir_fd=folder)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextlib.contextmanager
def _explained(done: str) -> Iterator[None]:
    """Turn what the system refuses into an answer that says what to do."""
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)
        if error.errno in FULL:
            raise ApiError(507, f"the KV was not {done}: {words}. Free some space, or erase saved files") from error
        raise ApiError(500, f"the KV was not {done}: {words} (folder slots of KVLAB_HOME)") from error
