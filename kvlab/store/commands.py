"""List, verify, prune and clear a store folder (``kvlab store``), also while others use it.

Every function returns tidy rows, with ``workload`` "store" and, where a row is about one namespace, its ``model``,
``policy``, ``dtype``, ``block`` and ``tenant``. ``tenant`` None means all of them, "" the one without a name.
"""

from __future__ import annotations

import time
from pathlib import Path

from tqdm import tqdm

from kvlab.errors import StoreError
from kvlab.store.answer_files import remove_answers
from kvlab.store.blocks import CHECKPOINT
from kvlab.store.command_rows import Row, row, tenant_filter
from kvlab.store.folder_access import read, writing
from kvlab.store.pruning_order import leaves_first
from kvlab.store.ssd import process_lock as owners
from kvlab.store.ssd.folder import ReadOnlyFolder, StoreFolder
from kvlab.store.ssd.layout import OWNERS
from kvlab.store.verification import verify
from kvlab.tiers import SSD

__all__ = ["Row", "clear", "ls", "prune", "verify"]

DELETES_PER_TRANSACTION = 200
"""Blocks removed in one transaction: few enough that a decoder's writer never waits long."""


def ls(directory: Path, *, tenant: str | None = None) -> list[Row]:
    """List sizes and ages by namespace, bytes written, and misses by reason since the stores in use were opened.

    Changes nothing, and waits for no process that writes. Raises ``StoreError``.
    """
    return read(directory, lambda folder: _ls(folder, tenant))


def _ls(folder: ReadOnlyFolder, tenant: str | None) -> list[Row]:
    view, now, rows = folder.view, time.time(), list[Row]()
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
            row(SSD.metric, nbytes, "bytes", space),
            row("blocks", blocks - checkpoints, "blocks", space),
            row("tails", tails, "blocks", space),
            row("checkpoints", checkpoints, "checkpoints", space),
            row("tokens", tokens, "tokens", space),
            row("age_s", max(0.0, now - created), "s", space),
            row("unused_s", max(0.0, now - used), "s", space),
        ]
    if tenant is None:
        rows += [
            row(SSD.metric, view.sum("bytes"), "bytes"),
            row("bytes_written", view.sum("written"), "bytes"),
            row("quarantined", len(folder.quarantine.files()), "files"),
            *_misses(folder),
        ]
    return rows


def _misses(folder: ReadOnlyFolder) -> list[Row]:
    """Count misses by reason for the stores that have the folder open, or for the last one that had."""
    sessions = [name for (name,) in folder.view.rows("SELECT owner FROM sessions ORDER BY seen DESC")]
    chosen = [name for name in sessions if owners.alive(folder.root / OWNERS, name)] or sessions[:1]
    sql = "SELECT name, sum(value) FROM counters WHERE name LIKE 'miss:%' AND owner IN ({}) GROUP BY name ORDER BY name"
    counted = folder.view.rows(sql.format(",".join("?" * len(chosen))), *chosen)
    return [row("misses", count, "requests", {"reason": name.partition(":")[2]}) for name, count in counted]


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
    with writing(directory) as folder:
        if unused is not None or keep == 0:
            before = float("inf") if unused is None else time.time() - unused
            remove_answers(folder.root, before=before, tenant=tenant)
        return _remove(folder, tenant, unused or 0.0, keep or 0, progress)


def clear(directory: Path, *, tenant: str | None = None, progress: bool = False) -> list[Row]:
    """Remove every block and answer, or those of one tenant, and the quarantine with the former."""
    with writing(directory) as folder:
        remove_answers(folder.root, tenant=tenant)
        rows = _remove(folder, tenant, 0.0, 0, progress)
        if tenant is None:
            with folder.index.write() as db:
                while folder.free_quarantined() or folder.free_unread():
                    pass
                for table in ("ghosts", "heads"):
                    db.execute(f"DELETE FROM {table}")
    return rows


def _remove(folder: StoreFolder, tenant: str | None, unused: float, keep: int, progress: bool) -> list[Row]:
    """Delete leaves unused for so many seconds, by last use, until ``keep`` bytes are left or none qualifies."""
    index = folder.index
    which, values = tenant_filter(tenant)
    found = index.rows(f"SELECT key, parent, used, bytes FROM blocks WHERE owner IS NULL AND {which}", *values)
    left, blocks, nbytes, stuck = sum(size for *_, size in found), 0, 0, 0
    order = list(leaves_first(found, time.time(), unused, left - keep))
    with tqdm(total=len(order), desc="remove", unit=" blocks", disable=not progress) as bar:
        for at in range(0, len(order), DELETES_PER_TRANSACTION):
            with index.write():
                for key, used in order[at : at + DELETES_PER_TRANSACTION]:
                    use = index.one("SELECT used FROM blocks WHERE key = ? AND owner IS NULL", key)
                    child = index.one("SELECT 1 FROM blocks WHERE parent = ? LIMIT 1", key)
                    if use is None or use[0] != used or child is not None:
                        continue  # evicted, used or built upon since
                    try:
                        folder.remove_file(key)
                    except OSError:
                        stuck += 1
                        continue
                    size = index.forget(key, "evicted")
                    blocks, nbytes, left = blocks + 1, nbytes + size, left - size
            bar.update(min(DELETES_PER_TRANSACTION, len(order) - at))
    return [
        row("removed", blocks, "blocks"),
        row("removed_bytes", nbytes, "bytes"),
        *([row("not_removable", stuck, "blocks")] if stuck else []),
        row(SSD.metric, left, "bytes"),
    ]
