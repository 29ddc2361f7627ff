"""Name blocks by a chained hash over everything that could make the same tokens mean other KV."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from kvlab.errors import StoreError

FORMAT = 2
"""Version of keys, block files and index; raising it makes every older block a miss."""

KEY_BYTES = 32

HEAD_TOKENS = 16
"""First tokens by which a prompt is recognised under another policy."""


def _hash(person: bytes, *parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES, person=person)
    for part in parts:
        digest.update(part)
    return digest.digest()


@dataclass(frozen=True)
class Namespace:
    """Holds what must be equal for KV to be shared: two namespaces never share a block.

    ``model`` is the fingerprint over weights and config, ``policy`` the lossy parts of the policy ("" when lossless),
    ``dtype`` that of the KV, ``block`` the block size in tokens, ``tenant`` a salt between clients.
    """

    model: str
    policy: str
    dtype: str
    block: int
    tenant: str = ""

    def __post_init__(self) -> None:
        if self.block < 1:
            raise StoreError(f"block={self.block} is not a block size; use 1 token or more")

    @cached_property
    def _root(self) -> bytes:
        return _hash(b"kvlab.root", json.dumps([FORMAT, asdict(self)], sort_keys=True).encode())

    def root(self) -> bytes:
        """Return the 32-byte parent of every first block."""
        return self._root

    def head(self, tokens: np.ndarray) -> bytes:
        """Name how a prompt starts, whatever policy, dtype and block size, to explain misses."""
        owner = json.dumps([self.model, self.tenant]).encode()
        return _hash(b"kvlab.head", owner, b"\0", tokens[:HEAD_TOKENS].tobytes())


def as_tokens(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return token ids as little-endian int32 ``[n]``. Raises ``StoreError`` for ids that do not fit."""
    try:
        array = np.asarray(tokens, dtype=np.int64)
        if array.ndim != 1 or (array.size and (array.min() < 0 or array.max() > 2**31 - 1)):
            raise OverflowError
    except (OverflowError, TypeError, ValueError):
        raise StoreError("tokens must be a flat sequence of ids from 0 to 2**31 - 1") from None
    return array.astype("<i4")


def chain(parent: bytes, tokens: bytes) -> bytes:
    """Return the key of the block that holds ``tokens`` (int32, little-endian) after ``parent``."""
    return _hash(b"kvlab.block", parent, tokens)


def chain_all(root: bytes, tokens: np.ndarray, block: int) -> list[bytes]:
    """Return the keys of all full blocks of ``tokens``, from the first on."""
    keys: list[bytes] = []
    parent, raw, step = root, tokens.tobytes(), 4 * block
    for at in range(0, len(raw) - step + 1, step):
        parent = chain(parent, raw[at : at + step])
        keys.append(parent)
    return keys


def checkpoint_key(parent: bytes, tokens: bytes) -> bytes:
    """Return the key of the state after ``tokens`` (fewer than a block) that follow the block ``parent``."""
    return _hash(b"kvlab.checkpoint", parent, tokens)


def sortable(tokens: bytes) -> bytes:
    """Swap the byte order of int32 tokens: big-endian bytes sort as the tokens do."""
    return np.frombuffer(tokens, dtype="<i4").astype(">i4").tobytes()


def common(a: bytes, b: bytes) -> int:
    """Count the leading tokens that two int32 strings share."""
    n = min(len(a), len(b)) // 4
    if a[: 4 * n] == b[: 4 * n]:
        return n
    left, right = np.frombuffer(a, dtype="<i4", count=n), np.frombuffer(b, dtype="<i4", count=n)
    return int(np.argmax(left != right))
