"""List, verify, prune and clear a store folder (``kvlab store``), also while others use it.

Every function returns tidy rows, with ``workload`` "store" and, where a row is about one namespace, its ``model``,
``policy``, ``dtype``, ``block`` and ``tenant``. ``tenant`` None means all of them, "" the one without a name.
"""

from __future__ import annotations

import heapq
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kvlab.errors import StoreError
from kvlab.store.blocks import CHECKPOINT
from kvlab.store.ssd import blockfile
from kvlab.store.ssd import process_lock as owners
from kvlab.store.ssd.folder import ReadOnlyFolder, StoreFolder
from kvlab.store.ssd.index import GARBLED, SsdIndex
from kvlab.tiers import SSD

Row = dict[str, Any]
DELETES_PER_TRANSACTION = 200
"""Blocks removed in one transaction: few enough that a decoder's writer never waits long."""


def ls(directory: Path, *, tenant: str | None = None) -> list[Row]:
    """List sizes and ages by namespace, bytes written, and misses by reason since the stores in use were opened."""
    with _reading(directory) as layout:
        view, now, rows = layout.view, time.time(), list[Row]()
        for root, *names in view.rows("SELECT root, model, policy, dtype, block, tenant FROM namespaces"):
            space: Row = dict(zip(("model", "policy", "dtype", "block", "tenant"), names, strict=True))
            counted = view.rows(
                "SELECT count(*), sum(kind = ?1), sum(kind <> ?1 AND length(tokens) < ?2),"
                " sum(length(tokens) * (kind <> ?1)) / 4, sum(bytes), min(created), max(used)"
                " FROM blocks WHERE root = ?3 AND owner IS NULL",
                CHECKPOINT, 4 * names[3], root,
            )[0]  # fmt: skip
            if not counted[0] or tenant not in (None, names[4]):
                continue
            blocks, checkpoints, tails, tokens, nbytes, created, used = counted
            rows += [
                _row(SSD.metric, nbytes, "bytes", space),
                _row("blocks", blocks - checkpoints, "blocks", space),
                _row("tails", tails, "blocks", space),
                _row("checkpoints", checkpoints, "checkpoints", space),
                _row("tokens", tokens, "tokens", space),
                _row("age_s", max(0.0, now - created), "s", space),
                _row("unused_s", max(0.0, now - used), "s", space),
            ]
        if tenant is None:
            quarantine = layout.root / "quarantine"
            rows += [
                _row(SSD.metric, view.sum("bytes"), "bytes"),
                _row("bytes_written", view.sum("written"), "bytes"),
                _row("quarantined", len(list(quarantine.iterdir())) if quarantine.is_dir() else 0, "files"),
                *_misses(layout),
            ]
    return rows


def _misses(layout: ReadOnlyFolder) -> list[Row]:
    """Count misses by reason for the stores that have the folder open, or for the last one that had."""
    sessions = [name for (name,) in layout.view.rows("SELECT owner FROM sessions ORDER BY seen DESC")]
    chosen = [name for name in sessions if owners.alive(layout.root / "owners", name)] or sessions[:1]
    sql = "SELECT name, sum(value) FROM counters WHERE name LIKE 'miss:%' AND owner IN ({}) GROUP BY name ORDER BY name"
    counted = layout.view.rows(sql.format(",".join("?" * len(chosen))), *chosen)
    return [_row("misses", count, "requests", {"reason": name.partition(":")[2]}) for name, count in counted]


def verify(directory: Path, *, tenant: str | None = None, progress: bool = False) -> list[Row]:
    """Read every block: bad files are quarantined, rows without a file and files without a row removed."""
    good = bad = nbytes = 0
    with _writing(directory) as folder:
        keys = _keys(folder.index, tenant)
        for key in _bar(keys, "verify", "blocks", progress):
            try:
                blockfile.read(folder.path(key), key)
            except (OSError, blockfile.BadBlock):
                with folder.index.write():
                    bad += _set_aside_if_bad(folder, key)
            else:
                good += 1
        nbytes = sum(size for (size,) in folder.index.among("SELECT bytes FROM blocks WHERE key IN ({})", keys))
        swept = folder.sweep() + sum(_remove_stray(folder, path) for path in list(folder.files()))
    return [
        _row("verified", good, "blocks"),
        _row("verified_bytes", nbytes, "bytes"),
        _row("corrupt", bad, "blocks"),
        _row("swept", swept, "files"),
    ]


def _set_aside_if_bad(folder: StoreFolder, key: bytes) -> int:
    """Read again with the write lock held, and set the block aside if it is bad; inside ``write``."""
    if folder.index.one("SELECT 1 FROM blocks WHERE key = ? AND owner IS NULL", key) is None:
        return 0  # evicted since
    try:
        blockfile.read(folder.path(key), key)
    except (OSError, blockfile.BadBlock):
        folder.set_aside(key)
        return 1
    return 0


def _remove_stray(folder: StoreFolder, path: Path) -> int:
    """Remove a file that no row names. A writer adds the row before the file, so its files are never removed."""
    with folder.index.write():
        try:
            key = bytes.fromhex(path.name)
        except ValueError:
            key = b""
        known = folder.path(key) == path if key else False
        if known and folder.index.one("SELECT 1 FROM blocks WHERE key = ?", key):
            return 0
        path.unlink(missing_ok=True)
    return 1


def prune(
    directory: Path,
    *,
    keep: int | None = None,
    unused: float | None = None,
    tenant: str | None = None,
    progress: bool = False,
) -> list[Row]:
    """Remove what was not used for ``unused`` seconds, and the least recently used until ``keep`` bytes are left.

    Leaves go first; a chain is never broken. With ``tenant`` only its blocks go, and only they count for ``keep``.
    """
    if keep is None and unused is None:
        raise StoreError("nothing to prune by; say how many bytes to keep, or how long unused blocks may stay")
    before = time.time() - unused if unused is not None else time.time()
    with _writing(directory) as folder:
        return _remove(folder, tenant, before, keep or 0, progress)


def clear(directory: Path, *, tenant: str | None = None, progress: bool = False) -> list[Row]:
    """Remove every block, or every block of one tenant, and the quarantine with the former."""
    with _writing(directory) as folder:
        rows = _remove(folder, tenant, float("inf"), 0, progress)
        if tenant is None:
            for path in folder.quarantine.iterdir():
                path.unlink(missing_ok=True)
            with folder.index.write() as db:
                for table in ("ghosts", "heads"):
                    db.execute(f"DELETE FROM {table}")
    return rows


def _remove(folder: StoreFolder, tenant: str | None, before: float, keep: int, progress: bool) -> list[Row]:
    """Delete leaves last used before a time, by last use, until ``keep`` bytes are left or none qualifies."""
    index = folder.index
    which, values = _of(tenant)
    found = index.rows(f"SELECT key, parent, used, bytes FROM blocks WHERE owner IS NULL AND {which}", *values)
    left, blocks, nbytes = sum(row[3] for row in found), 0, 0
    order = list(_leaves_first(found, before, left - keep))
    with tqdm(total=len(order), desc="remove", unit=" blocks", disable=not progress) as bar:
        for at in range(0, len(order), DELETES_PER_TRANSACTION):
            with index.write():
                for key, used in order[at : at + DELETES_PER_TRANSACTION]:
                    row = index.one("SELECT used FROM blocks WHERE key = ? AND owner IS NULL", key)
                    child = index.one("SELECT 1 FROM blocks WHERE parent = ? LIMIT 1", key)
                    if row is None or row[0] != used or child is not None:
                        continue  # evicted, used or built upon since
                    folder.path(key).unlink(missing_ok=True)
                    size = index.forget(key, "evicted")
                    blocks, nbytes, left = blocks + 1, nbytes + size, left - size
            bar.update(min(DELETES_PER_TRANSACTION, len(order) - at))
    return [
        _row("removed", blocks, "blocks"),
        _row("removed_bytes", nbytes, "bytes"),
        _row(SSD.metric, left, "bytes"),
    ]


def _leaves_first(
    found: Sequence[tuple[bytes, bytes, float, int]], before: float, surplus: int
) -> Iterator[tuple[bytes, float]]:
    """Yield blocks to remove until ``surplus`` bytes are gone: always the leaf that was unused for longest."""
    rows = {key: (parent, used, size) for key, parent, used, size in found}
    children = Counter(parent for parent, _, _ in rows.values())
    heap = [(used, key) for key, (_, used, _) in rows.items() if not children[key]]
    heapq.heapify(heap)
    while heap and surplus > 0 and heap[0][0] < before:
        used, key = heapq.heappop(heap)
        parent, _, size = rows[key]
        yield key, used
        surplus -= size
        children[parent] -= 1
        if parent in rows and not children[parent]:
            heapq.heappush(heap, (rows[parent][1], parent))


def _of(tenant: str | None) -> tuple[str, tuple[str, ...]]:
    if tenant is None:
        return "1", ()
    return "root IN (SELECT root FROM namespaces WHERE tenant = ?)", (tenant,)


def _keys(index: SsdIndex, tenant: str | None) -> list[bytes]:
    which, values = _of(tenant)
    return [key for (key,) in index.rows(f"SELECT key FROM blocks WHERE owner IS NULL AND {which}", *values)]


def _row(metric: str, value: float, unit: str, more: Row | None = None) -> Row:
    return {"policy": "", "workload": "store", "metric": metric, "value": value, "unit": unit} | (more or {})


def _bar(items: Sequence[bytes], what: str, unit: str, progress: bool) -> Iterator[bytes]:
    yield from tqdm(items, desc=what, unit=f" {unit}", disable=not progress)


@contextmanager
def _writing(directory: Path) -> Iterator[StoreFolder]:
    _there(directory)
    with _reported(directory):
        folder = StoreFolder(directory)
        try:
            yield folder
        finally:
            folder.close()


@contextmanager
def _reading(directory: Path) -> Iterator[ReadOnlyFolder]:
    _there(directory)
    with _reported(directory):
        try:
            layout: ReadOnlyFolder = StoreFolder(directory)
        except (OSError, sqlite3.Error):  # full or read-only: it can still be looked at
            layout = ReadOnlyFolder(directory)
        try:
            yield layout
        finally:
            layout.close()


def _there(directory: Path) -> None:
    if not (directory / "catalog.sqlite").exists() and not (directory / "blocks").is_dir():
        raise StoreError(
            f"there is no store in {directory} yet: kvlab serve --policy tiered makes it; or name the folder of another"
        )


@contextmanager
def _reported(directory: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except (OSError, sqlite3.Error, *GARBLED) as error:
        raise StoreError(f"{directory}: {error}") from error
