"""Which settings a store can have."""

from __future__ import annotations

from pathlib import Path

from kvlab.errors import StoreError
from kvlab.store.write_behind import WRITES


def check_settings(
    block: int, ram: int, ssd: int | None, directory: Path | str | None, write: str, admit: int, write_cap: int | None
) -> None:
    if block < 1:
        raise StoreError(f"block={block} is not a block size; use 1 token or more")
    if ram < 0 or (ssd is not None and ssd < 1):
        raise StoreError("ram and ssd are budgets in bytes; use a number above 0")
    if (ssd is None) != (directory is None):
        raise StoreError("an SSD tier needs both ssd= (bytes) and directory=")
    if write not in WRITES:
        raise StoreError(f"write={write!r} is not known; use one of {', '.join(WRITES)}")
    if admit < 1 or (write_cap is not None and write_cap < 0):
        raise StoreError("admit is a number of uses (1 or more), write_cap a number of bytes a day")
