"""Counts with their nouns, for what people read: ``1 core``, ``2 cores``."""

from __future__ import annotations


def counted(count: int, noun: str, many: str = "") -> str:
    """Return the count with its noun, in the plural unless it is one: ``1 prompt token``, ``1,200 prompt tokens``.

    Args:
        count: how many.
        noun: the singular, with adjectives before it.
        many: the plural where it is not the singular and an s, such as ``policies``.
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"
