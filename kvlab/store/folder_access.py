"""Open a store folder for a command: to read, which changes no byte, or to write.

What is in the way is said in one line.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kvlab.errors import StoreError
from kvlab.store.ssd import marker
from kvlab.store.ssd import process_lock as owners
from kvlab.store.ssd.durability import TROUBLE, damaged
from kvlab.store.ssd.folder import ReadOnlyFolder, StoreFolder

MAX_READINGS = 3
"""Readings of an index without a log, when each time a writer comes meanwhile."""

T = TypeVar("T")


def read(directory: Path, work: Callable[[ReadOnlyFolder], T]) -> T:
    """Return what ``work`` makes of the folder, of one state of its index. Raises ``StoreError``."""
    for _ in range(MAX_READINGS - 1):
        with contextlib.suppress(_Outdated):
            return _read(directory, work)
    with contextlib.suppress(_Outdated):
        return _read(directory, work)
    raise StoreError(f"{directory} changes too quickly to be read; try again")


class _Outdated(Exception):
    """Raised where a writer came during a reading."""


def _read(directory: Path, work: Callable[[ReadOnlyFolder], T]) -> T:
    with _reported(directory):
        folder = ReadOnlyFolder(directory)
        try:
            result = work(folder)
        except TROUBLE:
            if folder.view.is_outdated():
                raise _Outdated from None
            raise
        finally:
            outdated = folder.view.is_outdated()
            folder.close()
        if outdated:
            raise _Outdated
        return result


@contextmanager
def writing(directory: Path) -> Iterator[StoreFolder]:
    """Open a folder that is a store already. Raises ``StoreError``, also where another process does not let go."""
    with _reported(directory):
        marker.recognise(marker.resolved(directory))
        folder = StoreFolder(directory)
        try:
            yield folder
        finally:
            folder.close()


@contextmanager
def _reported(directory: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except TROUBLE as error:
        raise StoreError(_in_words(directory, error)) from error


def _in_words(directory: Path, error: Exception) -> str:
    if isinstance(error, TimeoutError) and error.args:
        return str(error)
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        root = marker.resolved(directory)
        return owners.is_held_by(root, owners.living_pids(root))
    if damaged(error):
        return f"{directory}: the index is damaged ({error}); `kvlab store verify --repair` rebuilds it from the blocks"
    return f"{directory}: {error}"
