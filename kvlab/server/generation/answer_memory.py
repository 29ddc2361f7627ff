"""The tokens of answers, found by the conversation that each ends; bounded in bytes, and kept over a restart."""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from kvlab.store.answer_files import AnswerFiles, AnswerRecord

MAX_ANSWER_BYTES = 64 << 20
"""Most bytes of tokens to remember for one model."""
ENTRY_BYTES = 400
"""What an entry takes beside its tokens, keys and objects included (360 measured with tracemalloc)."""


class Known(NamedTuple):
    """The tokens of a conversation up to the end of an answer, and the key that found them."""

    key: bytes
    ids: list[int]


class AnswerMemory:
    """Remembers conversations by a key of 32 bytes. Thread-safe.

    An entry holds only the tokens after the earlier answer that its prompt began with. Entries that others build on
    are always used later than those, so that what is used least recently can be dropped.

    Args:
        budget: bytes in memory.
        files: where entries are kept over a restart; None: they are lost with the process.
    """

    def __init__(self, budget: int = MAX_ANSWER_BYTES, files: AnswerFiles | None = None) -> None:
        self.nbytes = 0
        self.budget, self._files = budget, files
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, AnswerRecord] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def file_bytes(self) -> int:
        """Bytes of the entries on disk."""
        return self._files.nbytes if self._files is not None else 0

    @property
    def file_budget(self) -> int:
        """Bytes that the entries on disk may have."""
        return self._files.budget if self._files is not None else 0

    def find(self, key: bytes, tenant: str) -> list[int] | None:
        """Return the tokens that were remembered under ``key``; None where any of them are gone."""
        with self._lock:
            chain = self._chain(key, tenant)
            if chain is None:
                return None
            self._touch(chain)
            ids = array("I")
            for _, record in reversed(chain):
                ids.extend(record.tokens)
            last = chain[0][1]
            return ids.tolist() if _hash(ids[: last.start]) == last.before else None

    def add(self, key: bytes, tenant: str, ids: Sequence[int], parent: Known | None) -> None:
        """Remember ``ids``, which begin with those of ``parent``, under ``key``."""
        with self._lock:
            chain = self._chain(parent.key, tenant) if parent is not None else None
            if parent is None or chain is None or key in (k for k, _ in chain):
                record, chain = AnswerRecord(None, 0, array("I", ids), _hash(array("I"))), []
            else:
                start = len(parent.ids)
                before = _hash(array("I", ids[:start]))
                record = AnswerRecord(parent.key, start, array("I", ids[start:]), before)
            self._insert(key, record)
            self._touch([(key, record), *chain])
            if self._files is not None:
                self._files.write(key, tenant, record, [k for k, _ in chain])

    def _chain(self, key: bytes, tenant: str) -> list[tuple[bytes, AnswerRecord]] | None:
        """Return the entry of ``key`` and those that it builds on, the first one last."""
        chain: list[tuple[bytes, AnswerRecord]] = []
        wanted: bytes | None = key
        while wanted is not None:
            record = self._entries.get(wanted)
            if record is None and self._files is not None and (record := self._files.read(wanted, tenant)) is not None:
                self._insert(wanted, record)
            if record is None or (chain and record.end != chain[-1][1].start):
                return None
            chain.append((wanted, record))
            wanted = record.parent
        return chain if chain[-1][1].start == 0 else None

    def _insert(self, key: bytes, record: AnswerRecord) -> None:
        if (old := self._entries.pop(key, None)) is not None:
            self.nbytes -= _bytes(old)
        self._entries[key] = record
        self.nbytes += _bytes(record)

    def _touch(self, chain: Sequence[tuple[bytes, AnswerRecord]]) -> None:
        """Note the use of a chain, and drop what was not used for longest and does not fit."""
        for key, _ in chain:
            if key in self._entries:
                self._entries.move_to_end(key)
        while self.nbytes > self.budget:
            self.nbytes -= _bytes(self._entries.popitem(last=False)[1])


def _hash(tokens: array[int]) -> int:
    return xxhash.xxh3_64_intdigest(tokens.tobytes())


def _bytes(record: AnswerRecord) -> int:
    return ENTRY_BYTES + record.tokens.itemsize * len(record.tokens)
