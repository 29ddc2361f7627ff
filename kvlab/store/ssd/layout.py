"""Name everything that kvlab itself puts into a store folder; whatever has another name is not touched.

kvlab-store.json    the marker: this folder is a kvlab store, see marker.py
catalog.sqlite      the index (WAL)
blocks/a/<key>      one file a block, see blockfile.py
tmp/<owner>-<n>     files being written
owners/<owner>.lock held while a store has the folder open
quarantine/         the last bad files, for inspection; never read again
answers/            tokens of a server's answers, see answer_files.py
ballast             space that is freed when the disk is too full to open the index
catalog.suspect     there when the index proved damaged in use; the next start rebuilds it from the blocks
open.lock           held while one process opens the index; names it
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvlab.errors import StoreError

MARKER, INDEX, SUSPECT, BALLAST, OPEN_LOCK = (
    "kvlab-store.json", "catalog.sqlite", "catalog.suspect", "ballast", "open.lock",
)  # fmt: skip
BLOCKS, TMP, QUARANTINE, OWNERS = FOLDERS = ("blocks", "tmp", "quarantine", "owners")
ANSWERS = "answers"
INDEX_FILES = (INDEX, f"{INDEX}-wal", f"{INDEX}-shm", f"{INDEX}-journal")
WRITTEN_IN_PLACE = (*INDEX_FILES, OPEN_LOCK, MARKER)
"""Files whose bytes are changed: under a second name (a hard link) those would be somebody else's."""

SHARDS = tuple("0123456789abcdef")
"""Folders in blocks/, by the first digit of the key: few, since each one written to costs a sync at a flush."""

BLOCK_NAME = re.compile(r"[0-9a-f]{64}")
TMP_NAME = re.compile(r"([0-9a-f]{32})-[0-9a-f]{1,64}")
LOCK_NAME = re.compile(r"([0-9a-f]{32})\.lock")
ANSWER_NAME = re.compile(r"[0-9a-f]{64}-[0-9a-z]{1,64}\.answer(\.[0-9]{1,10}-[0-9]{1,10}\.part)?")
QUARANTINE_NAME = re.compile(r"[0-9]{1,20}-([0-9a-f]{64}|catalog\.sqlite)")


@dataclass(frozen=True)
class OwnFile:
    """Describes a regular file whose name kvlab could have given: its name, its bytes and when it was written."""

    name: str
    size: int
    written: float


def own_files(folder: str | Path, pattern: re.Pattern[str]) -> Iterator[OwnFile]:
    """Yield the regular files in ``folder`` with names of one form; links, folders and other names are skipped.

    A folder that is missing, a link or no folder at all has none. Raises ``OSError`` where it cannot be listed.
    """
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if not pattern.fullmatch(entry.name):
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed meanwhile
                if is_regular(found):
                    yield OwnFile(entry.name, found.st_size, found.st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        return


def is_regular(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode)


def check_links(root: Path) -> None:
    """Refuse a store with a link where its own folders and files should be. Raises ``StoreError`` or ``OSError``."""
    for name in (*FOLDERS, ANSWERS, *(f"{BLOCKS}/{shard}" for shard in SHARDS)):
        mode = _mode(root / name)
        if mode is not None and not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no folder"
            raise StoreError(
                f"{root / name} is {what}, and a kvlab store follows no links inside its folder: "
                f"put a real folder there, or use another dir"
            )
    for name in (*WRITTEN_IN_PLACE, SUSPECT, BALLAST):
        path = root / name
        mode = _mode(path)
        if mode is None:
            continue
        if not stat.S_ISREG(mode):
            what = "a link" if stat.S_ISLNK(mode) else "no file"
            raise StoreError(f"{path} is {what}; a kvlab store needs a file of its own there: move it away")
        if name in WRITTEN_IN_PLACE and os.lstat(path).st_nlink > 1:
            raise StoreError(
                f"{path} has a second name (a hard link), whose bytes would change too: "
                f"replace it by a copy of itself, or use another dir"
            )


def _mode(path: Path) -> int | None:
    try:
        return os.lstat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
