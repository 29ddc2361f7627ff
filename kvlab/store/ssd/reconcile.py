"""Bring the index and the files of a store folder into agreement, at each opening, while others write.

The index may be older than the files, newer, or new and empty; a killed process may have left rows or files
unfinished. Sound files without a row are indexed, rows without a file forgotten, bad files set aside. A file that
cannot be read for now stays, and its bytes count.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from kvlab.store.ssd import blockfile, layout, no_links
from kvlab.store.ssd import process_lock as owners
from kvlab.store.ssd.durability import UNREAD, is_lost
from kvlab.store.ssd.insertion import insert

if TYPE_CHECKING:
    from kvlab.store.ssd.folder import StoreFolder

SETTLED_PER_TRANSACTION = 200
"""Blocks settled in one transaction: few enough that another process's writer never waits long."""


def reconcile(folder: StoreFolder) -> int:
    """Settle every difference between rows and files; return how many there were, temporary files included.

    Raises ``OSError`` or ``sqlite3.Error``.
    """
    is_dead = _DeadOwners(folder)
    left, left_bytes = _remove_temporary(folder, is_dead)
    files, unlisted = folder.block_files()
    rows = {key: (size, owner) for key, size, owner in folder.index.rows("SELECT key, bytes, owner FROM blocks")}

    def differs(key: bytes) -> bool:
        file, row = files.get(key), rows.get(key)
        if row is None:
            return True
        if row[1] is not None:
            return is_dead(row[1])
        return file.size != row[0] if file is not None else key.hex()[0] not in unlisted

    folder.unread.clear()
    folder.lost.clear()
    todo = [key for key in files.keys() | rows.keys() if differs(key)]
    for at in range(0, len(todo), SETTLED_PER_TRANSACTION):
        with folder.index.write():
            for key in todo[at : at + SETTLED_PER_TRANSACTION]:
                _settle(folder, key, is_dead)
    with folder.index.write():
        folder.index.count(sum(folder.unread.values()) + folder.quarantine.nbytes() + left_bytes)
    if is_dead.found:
        folder.lost.clear()  # what a killed process did not finish was never promised
    return left + len(todo)


class _DeadOwners:
    """Tells which owners are dead, after removing the lock files of those; ``found`` says whether any is."""

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        self._known = {folder.owner.name: False}
        for name in owners.names(folder.owners):
            if name != folder.owner.name:
                with contextlib.suppress(OSError):
                    self._known[name] = owners.bury(folder.owners, name)

    @property
    def found(self) -> bool:
        return any(self._known.values())

    def __call__(self, owner: str) -> bool:
        if owner not in self._known:
            self._known[owner] = not owners.alive(self._folder.owners, owner)
        return self._known[owner]


def _remove_temporary(folder: StoreFolder, is_dead: _DeadOwners) -> tuple[int, int]:
    """Remove the temporary files of dead owners; return their number, and the bytes of those that would not go."""
    count = stuck = 0
    for file in list(layout.own_files(folder.root / layout.TMP, layout.TMP_NAME)):
        if is_dead(file.name.partition("-")[0]):
            count += 1
            try:
                no_links.remove(folder.root, layout.TMP, file.name)
            except OSError:
                stuck += file.size
    return count, stuck


def _settle(folder: StoreFolder, key: bytes, is_dead: _DeadOwners) -> None:
    """Look again with the write lock held, and make row and file of one key agree; inside ``write``."""
    index, path = folder.index, folder.file(key)
    row = index.one("SELECT owner FROM blocks WHERE key = ?", key)
    if row is not None and row[0] is not None and not is_dead(row[0]):
        return  # being written
    try:
        block, size = blockfile.read_header(path)
        if block.key != key:
            raise blockfile.BadBlock("it does not lie where its key says")
    except UNREAD as error:
        there = _size(path)
        if there is None and is_lost(path, error):
            if row is not None and row[0] is None:
                folder.lost[key] = index.forget(key, "evicted" if is_dead.found else "corrupt")
            else:
                index.forget(key, None)
        elif is_lost(path, error) and not isinstance(error, blockfile.NewerFormat):
            if row is not None:
                folder.lost[key] = there or 0
            folder.set_aside(key)
        elif row is None and there is not None:
            folder.unread[key] = there
        return
    if row is None:
        insert(index, [(replace(block, used=os.lstat(path).st_mtime), size)], None)
    else:
        index.measured(key, size)


def _size(path: str) -> int | None:
    """Return the bytes of a regular file; None where there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size if layout.is_regular(found) else None
