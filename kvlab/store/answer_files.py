"""Files with the tokens of answers, in ``answers/`` of a store's folder.

A file is named ``<key>-<tenant>.answer`` (``open`` without a tenant) and holds, little-endian:

    16 bytes  "kvlab answer", a format version, zeros
    32 bytes  the key, as in the name
    32 bytes  the key of the entry that this one builds on; zeros where it stands alone
    8 bytes   a hash of the tokens before it
    4 bytes   the number of tokens before it
    4 bytes   the number of its own tokens
    4 bytes   each token
    32 bytes  SHA-256 of all before

A file that is incomplete, damaged, foreign or a link is no entry. It is never deleted unless its name has this form.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import stat
import struct
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvlab.store.ssd import layout, no_links

NO_TENANT = "open"
"""Stands in a name for clients without a key."""
MAGIC = b"kvlab answer\x01\0\0\0"
HEADER = struct.Struct("<16s32s32sQII")
CHECKSUM_BYTES = 32
MAX_TOKENS = 1 << 24
STALE_PART_S = 3600.0
"""Age after which an unfinished file is what a killed process left."""
PRUNE_TO = 0.9
"""Share of the budget that is left after pruning, so that not every write prunes."""

log = logging.getLogger("kvlab.store")


@dataclass(frozen=True)
class AnswerRecord:
    """Tokens number ``start`` and following of a conversation; those before are ``parent``'s and its parents'.

    ``before`` is a hash of those: entries may be written anew with other tokens.
    """

    parent: bytes | None
    start: int
    tokens: array[int]
    before: int = 0

    @property
    def end(self) -> int:
        """The number of tokens up to the end of these."""
        return self.start + len(self.tokens)


class AnswerFiles:
    """Keeps records in the folder of the store at ``root``, private to the user, within ``budget`` bytes.

    Trouble with the disk costs reuse, never an answer. Calls of one object must not overlap; several processes may
    share the folder.
    """

    def __init__(self, root: Path, budget: int) -> None:
        self._root, self.budget = root, budget
        self._numbers = itertools.count()
        self._warned = False
        self.nbytes = 0
        with self._opened() as folder:
            if folder is not None:
                self._prune(folder)

    def read(self, key: bytes, tenant: str) -> AnswerRecord | None:
        """Return the record of ``key``; None where there is no sound one."""
        data = b""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self._opened() as folder, contextlib.suppress(FileNotFoundError):
            if folder is not None:
                with open(os.open(_name(key, tenant), flags, dir_fd=folder), "rb") as file:
                    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        data = file.read(HEADER.size + 4 * MAX_TOKENS + CHECKSUM_BYTES)
        return _decoded(data, key)

    def write(self, key: bytes, tenant: str, record: AnswerRecord, used: Sequence[bytes] = ()) -> None:
        """Write a record, whole or not at all, and note that those of ``used`` are needed, the last one most."""
        data = _encoded(key, record)
        if len(data) > self.budget * PRUNE_TO or len(record.tokens) > MAX_TOKENS:
            return
        name = _name(key, tenant)
        part = f"{name}.{os.getpid()}-{next(self._numbers)}.part"
        with self._opened(create=True) as folder:
            if folder is None:
                return
            try:
                with open(no_links.create(part, folder), "wb") as file:
                    file.write(data)
                os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(part, dir_fd=folder)
                raise
            self.nbytes += len(data)
            for earlier in used:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(_name(earlier, tenant), dir_fd=folder, follow_symlinks=False)
            if self.nbytes > self.budget:
                self._prune(folder)

    def _prune(self, folder: int) -> None:
        """Count the bytes, and delete what was not used for longest and does not fit."""
        found, now = [], time.time()
        for name, state in _files(folder):
            if name.endswith(".part"):
                if now - state.st_mtime > STALE_PART_S:
                    _unlink(folder, name)
            else:
                found.append((state.st_mtime_ns, name, state.st_size))
        self.nbytes = sum(size for _, _, size in found)
        if self.nbytes <= self.budget:
            return
        for _, name, size in sorted(found):
            if self.nbytes <= self.budget * PRUNE_TO:
                break
            _unlink(folder, name)
            self.nbytes -= size

    @contextlib.contextmanager
    def _opened(self, *, create: bool = False) -> Iterator[int | None]:
        """Open the folder; give None where there is none. The first error of the disk is a warning."""
        with contextlib.ExitStack() as stack:
            fd = None
            try:
                if (self._root / layout.MARKER).is_file():  # nothing is written into other folders than stores
                    fd = stack.enter_context(no_links.folder(self._root, layout.ANSWERS, create=create))
            except FileNotFoundError:
                pass
            except OSError as error:
                self._warn(error)
            try:
                yield fd
            except OSError as error:
                self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("kvlab store: answers are not kept in %s: %s", self._root, error.strerror or error)


def remove_answers(root: Path, *, before: float = float("inf"), tenant: str | None = None) -> None:
    """Delete the records last used at a time or before; of one tenant, or of all of them. Raises ``OSError``.

    A use that lies in the future, since the clock was set back, counts as one just now.
    """
    now = time.time()
    ending = ".answer" if tenant is None else f"-{tenant or NO_TENANT}.answer"
    with contextlib.suppress(FileNotFoundError), no_links.folder(root, layout.ANSWERS) as folder:
        for name, state in _files(folder):
            if min(state.st_mtime, now) <= before and ending in name:
                _unlink(folder, name)


def _files(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield name and state of the regular files whose names have our form."""
    for name in os.listdir(folder):
        if layout.ANSWER_NAME.fullmatch(name) is None:
            continue
        with contextlib.suppress(FileNotFoundError):
            state = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(state.st_mode):
                yield name, state


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _name(key: bytes, tenant: str) -> str:
    return f"{key.hex()}-{tenant or NO_TENANT}.answer"


def _encoded(key: bytes, record: AnswerRecord) -> bytes:
    parent = record.parent or bytes(32)
    data = HEADER.pack(MAGIC, key, parent, record.before, record.start, len(record.tokens))
    data += _little_endian(record.tokens).tobytes()
    return data + hashlib.sha256(data).digest()


def _decoded(data: bytes, key: bytes) -> AnswerRecord | None:
    if len(data) < HEADER.size + CHECKSUM_BYTES:
        return None
    payload, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    magic, own, parent, before, start, count = HEADER.unpack_from(payload)
    if (magic, own) != (MAGIC, key) or len(payload) != HEADER.size + 4 * count:
        return None
    if hashlib.sha256(payload).digest() != checksum:
        return None
    tokens = array("I")
    tokens.frombytes(payload[HEADER.size :])
    return AnswerRecord(None if parent == bytes(32) else parent, start, _little_endian(tokens), before)


def _little_endian(tokens: array[int]) -> array[int]:
    if sys.byteorder == "little":
        return tokens
    swapped = array("I", tokens)
    swapped.byteswap()
    return swapped
