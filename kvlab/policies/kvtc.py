"""``Kvtc``: KV at rest in about an eighth of its bytes, and live as the model computes it."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module

if TYPE_CHECKING:
    from kvlab.policies.policy import Policy

DIGEST_DIGITS = 16
"""Digits of a file's digest in block keys."""


@dataclass(frozen=True)
class Kvtc(Module):
    """K and V as the model computes them while live; at rest, in RAM too, principal components and entropy coding.

    Follows KVTC (Staniszewski and Lancucki 2025); the deviations are those of
    :class:`kvlab.caches.storage_codec.StorageCodec`. A block is encoded beside decoding and decoded when it is
    restored. It is restored whole or not at all.

    Args:
        transform: file that ``kvlab store fit`` wrote for the model; what it holds is part of the block key.
    """

    name: ClassVar[str] = "kvtc"
    slot: ClassVar[str] = "codec"
    paper: ClassVar[str] = "KVTC, arXiv:2511.01815"
    transform: str | None = None

    @property
    def storage_key(self) -> str:
        """The name and a digest of the transform; of no file yet, the name alone."""
        return f"{self.name}:{self.digest()}" if self.transform is not None else self.name

    def digest(self) -> str:
        """Return a digest of the transform's file. Raises PolicyError where there is none, or it cannot be read."""
        if self.transform is None:
            raise PolicyError(
                "kvtc has no transform: write kvtc:transform=FILE, a file that `kvlab store fit --out FILE` made for "
                "this model"
            )
        path = Path(self.transform).expanduser()
        try:
            return _digest(str(path), os.stat(path).st_mtime_ns)
        except OSError as error:
            raise PolicyError(
                f"kvtc: cannot read transform={self.transform} ({error.strerror}): write a file that `kvlab store fit "
                "--out FILE` made"
            ) from error

    def check(self, policy: Policy) -> None:
        super().check(policy)
        if policy.reuse.name != "paged":
            raise PolicyError(
                f"'{self}' writes blocks at rest, which '{policy.reuse}' does not keep: write '{self}|tiered'"
            )
        if policy.retention.stored_block is not None:
            raise PolicyError(
                f"'{self}' writes complete blocks, which '{policy.retention}' compresses: use one of them"
            )
        if getattr(policy.tiers, "restore", "always") != "always":
            raise PolicyError(f"'{self}' decodes what is read, which restore=auto does not time: leave restore out")


@functools.lru_cache(maxsize=8)
def _digest(path: str, changed_ns: int) -> str:
    """Return the digest of a file's content; ``changed_ns`` tells a new file of the same name."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:DIGEST_DIGITS]
