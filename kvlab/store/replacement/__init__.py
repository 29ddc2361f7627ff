"""Replacement policies, by name.

Add one: a file with a ``Replacement`` subclass whose ``name`` is that of the file. A subclass defined elsewhere, in a
notebook for instance, is known once it is defined.
"""

from __future__ import annotations

import importlib

from kvlab import replacement_names
from kvlab.errors import StoreError
from kvlab.store.replacement.base import Evictable, Replacement, any_key

for _name in replacement_names.replacement_files():
    importlib.import_module(f"{__name__}.{_name}")


def replacements() -> dict[str, type[Replacement]]:
    """Return every replacement policy by name; of two with one name the later counts."""
    found: dict[str, type[Replacement]] = {}
    pending = list(Replacement.__subclasses__())
    while pending:
        kind = pending.pop(0)
        pending.extend(kind.__subclasses__())
        if kind.__dict__.get("name"):
            found[kind.name] = kind
    return found


def check_replacement(name: str) -> type[Replacement]:
    """Return the replacement policy called ``name``. Raises ``StoreError`` that lists the names."""
    known = replacements()
    if name not in known:
        names = ", ".join(replacement_names.replacement_names())
        raise StoreError(f"replace={name!r} is not known; use one of {names}")
    return known[name]


def make(name: str, capacity: int) -> Replacement:
    """Make the replacement policy called ``name`` for a tier of ``capacity``. Raises ``StoreError``."""
    return check_replacement(name)(capacity)


REPLACEMENTS = replacement_names.replacement_files()
"""The names of the built-in policies."""

__all__ = ["REPLACEMENTS", "Evictable", "Replacement", "any_key", "check_replacement", "make", "replacements"]
