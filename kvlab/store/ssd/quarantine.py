"""Keep the last bad files of a store for inspection; they are never read again, and the first to go for space."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from kvlab.store.ssd import layout, no_links

MAX_QUARANTINED_FILES = 16


class Quarantine:
    """Moves files of the store in ``root`` to quarantine/, and removes the oldest of them."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def files(self) -> list[layout.OwnFile]:
        """Return the files there, oldest first. Raises ``OSError``."""
        return sorted(layout.own_files(self._root / layout.QUARANTINE, layout.QUARANTINE_NAME), key=lambda f: f.name)

    def nbytes(self) -> int:
        with contextlib.suppress(OSError):
            return sum(file.size for file in self.files())
        return 0

    def add(self, *names: str) -> bool:
        """Move a file in, or remove it where that fails; return whether it is gone from its place. Never raises."""
        try:
            target = (layout.QUARANTINE, f"{time.time_ns()}-{names[-1]}")
            return no_links.move(self._root, names, target) or not (self._root.joinpath(*names)).is_file()
        except OSError:
            with contextlib.suppress(OSError):
                return no_links.remove(self._root, *names)
        return False

    def trim(self, most: int = MAX_QUARANTINED_FILES) -> None:
        """Remove the oldest files beyond so many."""
        with contextlib.suppress(OSError):
            for old in self.files()[: -most or None]:
                no_links.remove(self._root, layout.QUARANTINE, old.name)
