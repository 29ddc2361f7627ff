"""Read and write byte sizes: ``2GB``, ``512MiB``, ``1000000``."""

from __future__ import annotations

import re

from kvlab.errors import PolicyError

UNIT_BYTES = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def parse_bytes(size: str | int) -> int:
    """Return the bytes of ``size``. Decimal units (GB) and binary ones (GiB), in any case.

    Raises:
        PolicyError: not a size, or a negative one.
    """
    if isinstance(size, int):
        if size < 0:
            raise PolicyError(f"a size cannot be negative: {size}")
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", size)
    if not match or match[2].upper() not in UNIT_BYTES:
        raise PolicyError(f"cannot read the size '{size}': write a number with a unit, such as 512MB, 2GB or 4GiB")
    return int(float(match[1]) * UNIT_BYTES[match[2].upper()])


def format_bytes(size: int) -> str:
    """Return the shortest exact text of ``size``, so that equal sizes are equal texts (``2GB``, ``1GiB``, ``123``)."""
    spellings = [
        f"{size // unit}{name.replace('I', 'i')}"
        for name, unit in UNIT_BYTES.items()
        if size % unit == 0 and size >= unit
    ]
    return min(reversed(spellings), key=len, default="0")
