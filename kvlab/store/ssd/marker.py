"""Tell store folders from folders of other things: only a folder that is known to be kvlab's is ever changed.

A store carries a marker file. Stores made before there were markers are known by their index, and get one.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from pathlib import Path

from kvlab.errors import StoreError
from kvlab.store import keys as k
from kvlab.store.ssd import layout, no_links
from kvlab.store.ssd.index import index_format

WHAT = "kvlab store: KV caches of language models; `kvlab store clear` empties it"
MAX_MARKER_BYTES = 4096

RECOGNISE_WAIT_S = 10.0
"""Seconds to wait for a process that keeps an index without a marker from being read, which few states of it do."""

log = logging.getLogger("kvlab.store")


def resolved(directory: Path) -> Path:
    """Return the folder that ``directory`` stands for: itself, or what it links to. Raises ``StoreError``."""
    root = Path(os.path.realpath(directory))
    if directory.is_symlink() and not root.exists():
        raise StoreError(f"{directory} is a link to {root}, which is not there: make that folder, or use another dir")
    if root.exists() and not root.is_dir():
        raise StoreError(f"{directory} is a file; a store needs a folder: use another dir")
    return root


def claim(root: Path) -> None:
    """Make ``root`` a store, if it is one already, empty or absent. Raises ``StoreError`` for any other folder.

    Nothing is written before that is clear. Raises ``OSError`` where the folder cannot be made or read.
    """
    layout.check_links(root)
    if _is_marked(root):
        return
    if not root.exists():
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif any(os.scandir(root)) and not _is_marked(root):  # again: another process may just have marked it
        if _index_format(root) is None:
            raise StoreError(_refusal(root))
        log.info("kvlab store: %s has the index of an earlier kvlab: it is a store, and is marked as one now", root)
    _mark(root)


def recognise(root: Path) -> None:
    """Check that ``root`` is a store, without changing it. Raises ``StoreError`` or ``OSError``."""
    layout.check_links(root)
    if _is_marked(root) or _index_format(root) is not None:
        return
    if not root.exists() or not any(os.scandir(root)):
        raise StoreError(
            f"there is no store in {root} yet: kvlab serve --policy tiered makes it; or name the folder of another"
        )
    raise StoreError(_refusal(root))


def _refusal(root: Path) -> str:
    return (
        f"{root} holds other files and no kvlab store (no {layout.MARKER}, no index of one), so nothing in it was "
        f"touched: use a new or empty folder, such as {root / 'kvlab-store'}. Only if it is a store that lost both, "
        f"make an empty file {root / layout.MARKER}"
    )


def _is_marked(root: Path) -> bool:
    """Tell whether the marker is there; empty it counts, as a power cut leaves it. Raises ``StoreError``."""
    path = root / layout.MARKER
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        text = os.read(fd, MAX_MARKER_BYTES)
    finally:
        os.close(fd)
    if not text.strip(b"\0 \n") or _text(k.FORMAT).startswith(text):
        return True
    try:
        version = json.loads(text)["format"]
        if not isinstance(version, int) or isinstance(version, bool):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise StoreError(f"{path} is not a marker of kvlab's: move it away, or use another dir") from None
    if version > k.FORMAT:
        raise StoreError(f"{root} was written by a newer kvlab; upgrade, or use another dir")
    return True


def _mark(root: Path) -> None:
    """Write the marker, durably: later starts depend on it."""
    try:
        fd = os.open(root / layout.MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return  # another process just wrote it
    try:
        os.write(fd, _text(k.FORMAT))
        os.fsync(fd)
    finally:
        os.close(fd)
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def renew(root: Path) -> None:
    """Bring a marker of an older format, or one that a power cut emptied, up to date. Raises ``OSError``."""
    if (root / layout.MARKER).read_bytes() == _text(k.FORMAT):
        return
    new = f"{layout.MARKER}.new"
    with no_links.folder(root) as folder:
        fd = no_links.create(new, folder)
        try:
            os.write(fd, _text(k.FORMAT))
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(new, layout.MARKER, src_dir_fd=folder, dst_dir_fd=folder)


def _text(version: int) -> bytes:
    return json.dumps({"what": WHAT, "format": version}).encode() + b"\n"


def _index_format(root: Path) -> int | None:
    """Return the format of the index in ``root``; None where there is none that kvlab made."""
    path = root / layout.INDEX
    if not path.is_file() or not path.stat().st_size:
        return None
    try:
        return index_format(path, RECOGNISE_WAIT_S)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # busy or out of reach: it may be one
        return None
