"""Verify a store folder: read every block, and say which are bad, out of reach, or not in the index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from kvlab.store.command_rows import Row, row, tenant_filter
from kvlab.store.folder_access import read, writing
from kvlab.store.ssd import blockfile
from kvlab.store.ssd.durability import UNREAD, in_words, is_lost
from kvlab.store.ssd.folder import ReadOnlyFolder, StoreFolder

Failures = dict[bytes, Exception]


def verify(directory: Path, *, tenant: str | None = None, progress: bool = False, repair: bool = False) -> list[Row]:
    """Read every block, and change nothing unless ``repair`` is set. Raises ``StoreError``.

    ``corrupt`` counts bad and missing files; ``unreadable`` files that cannot be read for now, of which nothing more
    is known; ``unindexed`` files named as blocks that the index lacks. Each file of the first two has a row of its
    own too, with its ``file`` and ``reason``. With ``repair`` bad files are quarantined, rows without a file removed,
    sound files without a row indexed and leftovers swept; what is unreadable stays as it is.
    """
    repaired = _repair(directory, tenant, progress) if repair else []
    return [*_check(directory, tenant, progress and not repair), *repaired]


def _check(directory: Path, tenant: str | None, progress: bool) -> list[Row]:
    folder, sizes = read(directory, lambda folder: (folder, _sizes(folder, tenant)))
    failed = _unread(folder, list(sizes), progress)
    still = read(directory, lambda folder: folder.view.contains(list(failed)))  # some were evicted meanwhile
    again = _unread(folder, [key for key in failed if key in still], False)
    corrupt = {key: error for key, error in again.items() if is_lost(folder.file(key), error)}
    unreadable = {key: error for key, error in again.items() if key not in corrupt}
    good = [size for key, size in sizes.items() if key not in failed]
    return [
        row("verified", len(good), "blocks"),
        row("verified_bytes", sum(good), "bytes"),
        row("corrupt", len(corrupt), "blocks"),
        row("unreadable", len(unreadable), "blocks"),
        *(_unindexed(directory) if tenant is None else []),
        *_listed("corrupt_file", folder, corrupt),
        *_listed("unreadable_file", folder, unreadable),
    ]


def _sizes(folder: ReadOnlyFolder, tenant: str | None) -> dict[bytes, int]:
    which, values = tenant_filter(tenant)
    return dict(folder.view.rows(f"SELECT key, bytes FROM blocks WHERE owner IS NULL AND {which}", *values))


def _unread(folder: ReadOnlyFolder, keys: Sequence[bytes], progress: bool) -> Failures:
    """Read the blocks; return those that were not read, with what went wrong."""
    failed: Failures = {}
    for key in tqdm(keys, desc="verify", unit=" blocks", disable=not progress):
        try:
            blockfile.read(folder.file(key), key)
        except UNREAD as error:
            failed[key] = error
    return failed


def _unindexed(directory: Path) -> list[Row]:
    """Count the files that are named as blocks but have no row, and the folders that cannot be listed."""

    def extra(folder: ReadOnlyFolder) -> tuple[list[bytes], set[str]]:
        files, unlisted = folder.block_files()  # before the rows: a writer adds the row first
        known = {key for (key,) in folder.view.rows("SELECT key FROM blocks")}
        return [key for key in files if key not in known and os.path.exists(folder.file(key))], unlisted

    files, unlisted = read(directory, extra)
    return [row("unindexed", len(files), "files"), row("unlisted", len(unlisted), "folders")]


def _listed(metric: str, folder: ReadOnlyFolder, failures: Failures) -> list[Row]:
    names = {key: str(folder.path(key).relative_to(folder.root)) for key in failures}
    return [row(metric, 1, "files", {"file": names[key], "reason": in_words(e)}) for key, e in failures.items()]


def _repair(directory: Path, tenant: str | None, progress: bool) -> list[Row]:
    with writing(directory) as folder:
        aside = 0
        for key in _unread(folder, list(_sizes(folder, tenant)), progress):
            with folder.index.write():
                aside += _set_aside_if_bad(folder, key)
        swept = folder.swept
    return [row("swept", swept, "files"), row("set_aside", aside, "blocks")]


def _set_aside_if_bad(folder: StoreFolder, key: bytes) -> int:
    """Read again with the write lock held, and set the block aside if it is bad; inside ``write``."""
    if folder.index.one("SELECT 1 FROM blocks WHERE key = ? AND owner IS NULL", key) is None:
        return 0  # evicted since
    try:
        blockfile.read(folder.file(key), key)
    except UNREAD as error:
        if is_lost(folder.file(key), error):
            folder.set_aside(key)
            return 1
    return 0
