"""Replacement policies, by name. Add one: a file with a ``Replacement`` subclass, and its line in ``REPLACEMENTS``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kvlab.errors import StoreError
from kvlab.store.replacement.base import Evictable, Replacement, anyone
from kvlab.store.replacement.cost import CostAware
from kvlab.store.replacement.gdsf import Gdsf
from kvlab.store.replacement.lfu import Lfu
from kvlab.store.replacement.lru import Lru
from kvlab.store.replacement.s3fifo import S3Fifo
from kvlab.store.replacement.sieve import Sieve

REPLACEMENTS: Mapping[str, type[Replacement]] = MappingProxyType(
    {kind.name: kind for kind in (Lru, Lfu, S3Fifo, Sieve, Gdsf, CostAware)}
)


def make(name: str, capacity: int) -> Replacement:
    """The replacement policy called ``name`` for a tier of ``capacity``. Raises ``StoreError`` listing the names."""
    if name not in REPLACEMENTS:
        raise StoreError(f"replace={name!r} is not known; use one of {', '.join(REPLACEMENTS)}")
    return REPLACEMENTS[name](capacity)


__all__ = ["REPLACEMENTS", "Evictable", "Replacement", "anyone", "make"]
