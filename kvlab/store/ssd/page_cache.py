"""Have the operating system forget what it read of a file, so that the next read comes from the drive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def forget_pages(path: str | Path, *, written: bool = False) -> bool:
    """Ask the operating system to forget a file's pages that are on the drive already; return whether it can be asked.

    Linux can. ``written`` writes the others there first. Raises ``OSError`` where the file cannot be opened.
    """
    advise: Any = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if written:
            os.fsync(file)
        advise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
    return True
