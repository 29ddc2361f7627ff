"""``TraceSource``: the parts of a trace file, unpacked: plain, .gz, .xz, .tar, .tar.gz or .tar.xz, or a folder."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import orjson

from kvlab.replay.errors import TraceError

START_BYTES = 1 << 16
"""What is looked at to recognise a format."""
SHOWN_LETTERS = 60
"""Letters of a bad line that an error shows."""
OPENERS: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class TracePart:
    """Holds one file of a trace: its place for errors, and its bytes."""

    place: str
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that are not empty, with their numbers from 1 on."""
        for number, line in enumerate(io.BytesIO(self.data), start=1):
            if line := line.strip():
                yield number, line

    def objects(self, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the JSON object of each line, with its number. Raises ``TraceError`` where a line holds none."""
        for number, line in self.lines():
            try:
                found = orjson.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise self.error(number, expected, line.decode(errors="replace"))
            yield number, found

    def error(self, line: int, expected: str, found: str = "") -> TraceError:
        """Return the error of a line: where, what was expected, and what is there."""
        shown = found if len(found) <= SHOWN_LETTERS else f"{found[:SHOWN_LETTERS]}..."
        return TraceError(f"{self.place}, line {line}: expected {expected}" + (f", not {shown}" if shown else ""))


@dataclass(frozen=True)
class TraceSource:
    """Opens a trace file or folder. Raises ``TraceError`` where it cannot be read."""

    path: Path

    @property
    def name(self) -> str:
        """The file's name without the endings of its format."""
        name = self.path.name
        for ending in (".xz", ".gz", ".tar", ".jsonl", ".json", ".trace", ".txt", ".zarr"):
            name = name.removesuffix(ending)
        return name or self.path.name

    def parts(self) -> Iterator[TracePart]:
        """Yield the file, or the files of an archive or a folder by their names."""
        with self._explained():
            yield from self._parts()

    @cached_property
    def start(self) -> str:
        """The beginning of the first part; empty where there is none."""
        if self.path.is_dir():
            first = next(iter(sorted(self.path.glob("*.json"))), None)
            return first.read_bytes()[:START_BYTES].decode(errors="replace") if first is not None else ""
        with self._explained(), self._opened() as file:
            if not self._is_archive:
                return file.read(START_BYTES).decode(errors="replace")
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for member in archive:
                    inner = archive.extractfile(member) if member.isfile() else None
                    if inner is not None:
                        return inner.read(START_BYTES).decode(errors="replace")
        return ""

    @property
    def first_object(self) -> dict[str, Any]:
        """The JSON object of the first line that is not empty; empty where it is none."""
        try:
            found = orjson.loads(self.start.lstrip().partition("\n")[0])
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def _is_archive(self) -> bool:
        return ".tar" in self.path.suffixes

    def _parts(self) -> Iterator[TracePart]:
        if self.path.is_dir():
            for path in sorted(self.path.glob("*.json")):
                yield TracePart(str(path), path.read_bytes())
            return
        with self._opened() as file:
            if not self._is_archive:
                yield TracePart(str(self.path), file.read())
                return
            with tarfile.open(fileobj=file, mode="r|") as archive:
                for member in archive:
                    inner = archive.extractfile(member) if member.isfile() else None
                    if inner is not None:
                        yield TracePart(f"{self.path}: {member.name}", inner.read())

    def _opened(self) -> IO[bytes]:
        opened: IO[bytes] = OPENERS.get(self.path.suffix, open)(self.path, "rb")
        return opened

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise TraceError(f"{self.path}: no such file; give a trace file, an archive or a run folder") from None
        except UNREADABLE as error:
            raise TraceError(f"{self.path}: it cannot be unpacked ({' '.join(str(error).split())})") from None
