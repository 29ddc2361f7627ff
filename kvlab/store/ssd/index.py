"""Keep the SQLite index of a store folder, which all processes that use the folder share."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvlab.errors import StoreError
from kvlab.store.keys import FORMAT
from kvlab.store.ssd.read_only import ReadOnlyConnection

MAX_GHOST_KEYS = 50_000
"""Dropped keys that are remembered to explain misses."""

MAX_PROMPT_HEADS = 10_000
"""Starts of prompts that are remembered for the same purpose."""

MAX_SESSIONS = 50
"""Stores whose counters are kept."""

KEYS_PER_STATEMENT = 500
"""Bound variables that SQLite gets in one statement."""

LOG_BYTES = 4 << 20
"""The log is cut to this size when it was written back, which SQLite does at about this size."""

APPLICATION_ID = 0x6B760000
"""SQLite's application id of an index; the format is added to it."""

_IDENTITY = ("user_version", "application_id")

GARBLED = (ArithmeticError, LookupError, TypeError, ValueError)
"""Errors other than sqlite3.Error that a damaged index causes: bytes that are not text, numbers in place of keys."""

_SCHEMA = """
CREATE TABLE blocks (
  id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, parent BLOB NOT NULL, root BLOB NOT NULL,
  kind INTEGER NOT NULL, tokens BLOB NOT NULL, start INTEGER NOT NULL, bytes INTEGER NOT NULL, cost REAL NOT NULL,
  created REAL NOT NULL, used REAL NOT NULL, uses INTEGER NOT NULL, owner TEXT);
CREATE INDEX siblings ON blocks (parent, kind, tokens);
CREATE INDEX unfinished ON blocks (owner) WHERE owner IS NOT NULL;
CREATE TABLE namespaces (
  root BLOB PRIMARY KEY, model TEXT, policy TEXT, dtype TEXT, block INTEGER, tenant TEXT, created REAL) WITHOUT ROWID;
CREATE TABLE heads (id INTEGER PRIMARY KEY, head BLOB NOT NULL, root BLOB NOT NULL, UNIQUE (head, root));
CREATE TABLE ghosts (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, reason TEXT NOT NULL);
CREATE TABLE sums (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE days (day TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (owner TEXT PRIMARY KEY, pid INTEGER, started REAL, seen REAL) WITHOUT ROWID;
CREATE TABLE counters (owner TEXT, name TEXT, value INTEGER NOT NULL, PRIMARY KEY (owner, name)) WITHOUT ROWID;
INSERT INTO sums VALUES ('bytes', 0), ('blocks', 0), ('written', 0), ('indexed', 1),
  ('unindexed', 0);
"""


class SsdIndex:
    """Holds one connection to the index, for use from any thread. Every method may raise ``sqlite3.Error``.

    Readers never wait for writers (WAL). A transaction is durable against a killed process when it has committed, and
    against a power cut once ``sync`` has returned.
    """

    def __init__(self, path: Path, *, wait: float, read_only: bool = False) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._source: ReadOnlyConnection | None = None
        if read_only:
            self.identity = _identity(os.stat(path))
            self._source = ReadOnlyConnection(path, wait)
            self._db = self._source.db
        else:
            # Only a new file is opened here: closing one that another connection of this process has open would drop
            # that connection's POSIX locks, and another process could then delete the log under it.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self.identity = _identity(os.stat(path))
            self._db = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
        try:
            if not read_only:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                # On macOS: checkpoints flush the drive; after a commit the tier does, once for the whole batch.
                self._db.execute("PRAGMA checkpoint_fullfsync=ON")
                self._db.execute("PRAGMA temp_store=MEMORY")
                self._db.execute(f"PRAGMA journal_size_limit={LOG_BYTES}")
                self._create()
            elif self._version() != FORMAT:
                raise sqlite3.DatabaseError("another format")
        except BaseException:
            self.close()
            raise

    def _version(self) -> int:
        return self._db.execute("PRAGMA user_version").fetchone()[0]

    def _create(self) -> None:
        version, maker = self._version(), self._db.execute("PRAGMA application_id").fetchone()[0]
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not tables & {"blocks", "namespaces", "sums"}:
            raise StoreError(f"{self.path} is another program's database; move it away, or use another dir")
        if maker == version == 0 and not tables:
            with self.write():
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id={APPLICATION_ID + FORMAT}")
                self._db.execute(f"PRAGMA user_version={FORMAT}")
        elif maker != APPLICATION_ID + version or version < FORMAT:
            raise sqlite3.DatabaseError("not an index, or one of an older format")
        elif version > FORMAT:
            raise StoreError(f"{self.path.parent} was written by a newer kvlab; upgrade, or use another dir")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction that holds the folder's write lock from its start."""
        with self.lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.lock:
            return self._db.execute(sql, values).fetchall()

    def one(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        with self.lock:
            return self._db.execute(sql, values).fetchone()

    def many(self, sql: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Execute the same statement for all ``rows``; inside ``write``."""
        self._db.executemany(sql, rows)

    def among(self, sql: str, keys: Sequence[bytes]) -> list[tuple[Any, ...]]:
        """Return the rows of a query that has one ``{}`` for the list of keys."""
        found: list[tuple[Any, ...]] = []
        for at in range(0, len(keys), KEYS_PER_STATEMENT):
            some = keys[at : at + KEYS_PER_STATEMENT]
            found += self.rows(sql.format(",".join("?" * len(some))), *some)
        return found

    def sum(self, name: str) -> int:
        row = self.one("SELECT value FROM sums WHERE name = ?", name)
        return row[0] if row else 0

    def held(self) -> int:
        """Return the bytes that count for the budget: of blocks, and of files of kvlab's that no row names."""
        return self.sum("bytes") + self.sum("unindexed")

    def count(self, unindexed: int) -> None:
        """Set the sums to what the rows say, and to the bytes of files that no row names; inside ``write``."""
        nbytes, blocks = self._db.execute("SELECT coalesce(sum(bytes), 0), count(*) FROM blocks").fetchone()
        right = {"bytes": nbytes, "blocks": blocks, "indexed": 1, "unindexed": unindexed}
        now = dict(self.rows("SELECT name, value FROM sums"))
        wrong = {name: value for name, value in right.items() if now.get(name) != value}
        self.many("INSERT OR REPLACE INTO sums VALUES (?, ?)", list(wrong.items()))
        if "written" not in now:
            self._db.execute("INSERT INTO sums VALUES ('written', 0)")

    def add(self, **amounts: int) -> None:
        """Change sums; inside ``write``."""
        whens = " ".join("WHEN ? THEN ?" for _ in amounts)  # one statement, the same each time: it stays prepared
        pairs = [value for pair in amounts.items() for value in pair]
        names = ",".join("?" * len(amounts))
        sql = f"UPDATE sums SET value = value + CASE name {whens} END WHERE name IN ({names})"
        self._db.execute(sql, [*pairs, *amounts])

    def written_on(self, day: str) -> int:
        row = self.one("SELECT bytes FROM days WHERE day = ?", day)
        return row[0] if row else 0

    def count_written(self, day: str, nbytes: int) -> None:
        """Add to the bytes written on a day and in total; inside ``write``."""
        self.add(written=nbytes)
        self._db.execute("INSERT INTO days VALUES (?1, ?2) ON CONFLICT DO UPDATE SET bytes = bytes + ?2", (day, nbytes))

    def commit(self, keys: Iterable[bytes]) -> None:
        """Make these blocks visible to lookups; inside ``write``."""
        self._db.executemany("UPDATE blocks SET owner = NULL WHERE key = ?", [(key,) for key in keys])

    def measured(self, key: bytes, size: int) -> None:
        """Note the size of a complete file, and make its block visible; inside ``write``, before ``count``."""
        self._db.execute("UPDATE blocks SET bytes = ?, owner = NULL WHERE key = ?", (size, key))

    def forget(self, key: bytes, reason: str | None) -> int:
        """Delete a row and take its bytes off the sum; inside ``write``. Returns its bytes, 0 when there is no row."""
        row = self.one("DELETE FROM blocks WHERE key = ? RETURNING bytes", key)
        if row is None:
            return 0
        self.add(bytes=-row[0], blocks=-1)
        if reason is not None:
            self.ghost(key, reason)
        return row[0]

    def ghost(self, key: bytes, reason: str) -> None:
        """Remember why a key is gone; inside ``write``."""
        self._db.execute("INSERT OR REPLACE INTO ghosts (key, reason) VALUES (?, ?)", (key, reason))
        self._db.execute("DELETE FROM ghosts WHERE id <= (SELECT max(id) FROM ghosts) - ?", (MAX_GHOST_KEYS,))

    def head(self, head: bytes, root: bytes) -> None:
        """Remember how a prompt starts; inside ``write``."""
        self._db.execute("INSERT OR IGNORE INTO heads (head, root) VALUES (?, ?)", (head, root))
        self._db.execute("DELETE FROM heads WHERE id <= (SELECT max(id) FROM heads) - ?", (MAX_PROMPT_HEADS,))

    def touch(self, uses: Iterable[tuple[bytes, float, int]]) -> None:
        """Note ``(key, when, how often)``; inside ``write``."""
        self._db.executemany("UPDATE blocks SET used = max(used, ?2), uses = uses + ?3 WHERE key = ?1", list(uses))

    def session(self, owner: str, counters: Mapping[str, int]) -> None:
        """Add to the counters of one store, and note that it is in use; inside ``write``."""
        now = time.time()
        self._db.execute(
            "INSERT INTO sessions VALUES (?1, ?2, ?3, ?3) ON CONFLICT DO UPDATE SET seen = ?3",
            (owner, os.getpid(), now),
        )
        self._db.executemany(
            "INSERT INTO counters VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET value = value + ?3",
            [(owner, name, value) for name, value in counters.items() if value],
        )

    def trim_sessions(self) -> None:
        """Keep the counters of the last stores only; inside ``write``."""
        self._db.execute(
            "DELETE FROM sessions WHERE owner NOT IN (SELECT owner FROM sessions ORDER BY seen DESC LIMIT ?)",
            (MAX_SESSIONS,),
        )
        self._db.execute("DELETE FROM counters WHERE owner NOT IN (SELECT owner FROM sessions)")

    def sync(self) -> None:
        """Make every commit so far survive a power cut."""
        with self.lock:
            self._db.execute("PRAGMA synchronous=FULL")
            try:
                with self.write():
                    self._db.execute("UPDATE sums SET value = value WHERE name = 'written'")  # any write syncs the log
            finally:
                self._db.execute("PRAGMA synchronous=NORMAL")

    def in_place(self) -> bool:
        """Tell whether the open file is still the one at its path: writes into a deleted folder would be lost."""
        try:
            return _identity(os.stat(self.path)) == self.identity
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)  # else it is out of reach, not gone

    def is_outdated(self) -> bool:
        """Tell whether a view that only reads may be a mixture, because a writer came meanwhile."""
        return self._source is not None and self._source.is_outdated()

    def close(self) -> None:
        with self.lock:
            if self._source is not None:
                self._source.close()
            else:
                self._db.close()


def index_format(path: Path, wait: float) -> int | None:
    """Return the format of the index in ``path``; None for a database that kvlab did not make.

    Changes nothing. Raises ``sqlite3.Error``, or ``OSError`` where it cannot be read.
    """
    source = ReadOnlyConnection(path, wait)
    try:
        (version,), (maker,) = (source.db.execute(f"PRAGMA {name}").fetchone() for name in _IDENTITY)
        has_blocks = source.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'blocks'").fetchone() is not None
    finally:
        source.close()
    return version if version > 0 and maker == APPLICATION_ID + version and has_blocks else None


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino
