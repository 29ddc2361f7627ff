"""The row store of a sweep: a folder with one JSON file for each finished cell, safe for several processes at once."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kvlab.errors import RunError
from kvlab.experiments.cell import Cell, CellResult
from kvlab.results import Results, make_folder
from kvlab.results.load import OTHER_LOAD, joined_load, joined_systems
from kvlab.systems import SYSTEMS

FORMAT = 1


class RowStore:
    """`FOLDER/cells/ID.json` holds a finished cell: its content, rows, provenance, events.

    A file is written under another name and renamed: it is complete or absent. A running cell is claimed with a file
    lock, which ends with its process; the empty lock file stays, as another process may hold it. Where locks do not
    work, two processes may run one cell; then the rows of the later one remain.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folders. Raises RunError where they cannot be made or written to."""
        self.folder, self.cells, self.work = folder, folder / "cells", folder / ".work"
        for needed in (self.folder, self.cells, self.work):
            make_folder(needed)

    def read(self, cell: Cell) -> CellResult | None:
        """Return the result of a cell; None where it is not finished, or its file is damaged or of another cell."""
        try:
            found: Any = json.loads((self.cells / f"{cell.id}.json").read_text(encoding="utf-8"))
            if found["format"] != FORMAT or found["cell"] != cell.content():
                return None
            return CellResult(cell, found["rows"], found["provenance"], found["events"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, result: CellResult) -> None:
        """Write a result, all or nothing. Raises RunError where the folder cannot be written to."""
        document = {
            "format": FORMAT,
            "cell": result.cell.content(),
            "provenance": result.provenance,
            "rows": result.rows,
            "events": result.events,
        }
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=self.work, prefix=f"{result.cell.id}.", suffix=".tmp", delete=False, encoding="utf-8"
            ) as stream:
                json.dump(document, stream, separators=(",", ":"))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(stream.name, self.cells / f"{result.cell.id}.json")
        except OSError as error:
            raise RunError(f"cannot write to {self.cells} ({error.strerror}); make room or choose another") from error

    @contextlib.contextmanager
    def claim(self, cell: Cell) -> Iterator[Path | None]:
        """Yield an empty folder for the cell's SSD tiers, or None while another process is at this cell."""
        with (self.work / f"{cell.id}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            except OSError:  # no locks here: work without
                pass
            work = self.work / cell.id
            self._sweep(cell)
            make_folder(work)
            try:
                yield work
            finally:
                self._sweep(cell)

    def results(self, cells: Sequence[Cell]) -> Results:
        """Return the rows of those cells that are finished, in their order, with the provenance of the first.

        `provenance["commits"]` lists the commits where the cells were measured at more than one.
        """
        found = [result for cell in cells if (result := self.read(cell)) is not None]
        if not found:
            raise RunError(f"{self.folder} holds no finished cell of this experiment")
        provenance = dict(found[0].provenance)
        commits = list(dict.fromkeys(one.provenance.get("commit", "") for one in found))
        if len(commits) > 1:
            provenance["commits"] = commits
        if load := joined_load(one.provenance for one in found):
            provenance[OTHER_LOAD] = load
        if systems := joined_systems(one.provenance for one in found):
            provenance[SYSTEMS] = systems
        return Results([row for one in found for row in one.rows], provenance)

    def _sweep(self, cell: Cell) -> None:
        """Remove the files of a process that was killed while it ran this cell."""
        shutil.rmtree(self.work / cell.id, ignore_errors=True)
        for left in self.work.glob(f"{cell.id}.*.tmp"):
            left.unlink(missing_ok=True)
