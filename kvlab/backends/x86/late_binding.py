"""Bind functions of a library that is loaded already to those of another one, on Linux.

The dynamic linker binds a library's calls once, when it is loaded: MLX that was imported before kvlab calls reference
BLAS. Each call goes through one entry of the library's table of imported functions (its PLT's GOT), which is written
here. Knows ELF files of 64 bits only.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MAPS = Path("/proc/self/maps")
ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
PAGE_BYTES = mmap.PAGESIZE
PT_LOAD, PT_DYNAMIC = 1, 2
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_JMPREL = 2, 5, 6, 23
RELA, SYMBOL, DYNAMIC = struct.Struct("<QQq"), struct.Struct("<IBBHQQ"), struct.Struct("<qQ")


@dataclass(frozen=True)
class _Mapping:
    """A range of addresses of this process; ``offset`` is where its part of the file ``path`` begins."""

    start: int
    end: int
    is_writable: bool
    offset: int
    path: str


def rebind(library: str, functions: Mapping[str, int]) -> bool:
    """Have the loaded ``library`` (a file name) call these functions, by name their addresses, from now on.

    Returns whether it was done; where not, nothing was changed: the library is not loaded, calls none of them, or its
    table cannot be read or written.
    """
    with contextlib.suppress(OSError, ValueError, struct.error, KeyError):
        mappings = list(_mappings())
        own = [mapping for mapping in mappings if Path(mapping.path).name == library]
        entries = {address: functions[name] for name, address in _calls(own) if name in functions}
        writable = all(any(m.start <= entry < m.end and m.is_writable for m in mappings) for entry in entries)
        if entries and writable:
            for entry, function in entries.items():
                ctypes.c_uint64.from_address(entry).value = function  # eight aligned bytes: written at once
            return True
    return False


def _mappings() -> Iterator[_Mapping]:
    for line in MAPS.read_text().splitlines():
        place, rights, offset, _, _, *path = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in place.split("-"))
        yield _Mapping(start, end, rights[1] == "w", int(offset, 16), path[0] if path else "")


def _calls(own: list[_Mapping]) -> Iterator[tuple[str, int]]:
    """Yield each imported function of a loaded library, and the address of its entry."""
    [first, *_] = [mapping for mapping in own if mapping.offset == 0]
    headers = list(_program_headers(Path(first.path)))
    [lowest, *_] = [address for kind, address, _ in headers if kind == PT_LOAD]
    [(dynamic, size)] = [(address, size) for kind, address, size in headers if kind == PT_DYNAMIC]
    base = first.start - lowest // PAGE_BYTES * PAGE_BYTES
    facts = dict(DYNAMIC.iter_unpack(ctypes.string_at(base + dynamic, size)))
    # glibc has added the base to these addresses; other linkers leave them as they are in the file.
    table, symbols, names = (_based(base, facts[tag]) for tag in (DT_JMPREL, DT_SYMTAB, DT_STRTAB))
    for offset, info, _ in RELA.iter_unpack(ctypes.string_at(table, facts[DT_PLTRELSZ])):
        symbol = SYMBOL.unpack(ctypes.string_at(symbols + SYMBOL.size * (info >> 32), SYMBOL.size))
        yield ctypes.string_at(names + symbol[0]).decode(), base + offset


def _program_headers(path: Path) -> Iterator[tuple[int, int, int]]:
    """Yield kind, address and size of each segment of an ELF file. Raises ValueError for another file."""
    with path.open("rb") as file:
        head = file.read(64)
        if not head.startswith(ELF64_LITTLE_ENDIAN):
            raise ValueError(f"{path} is no ELF file of 64 bits")
        (start,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(start)
        for _ in range(count):
            header = file.read(size)
            (kind,) = struct.unpack_from("<I", header)
            address, _, _, in_memory = struct.unpack_from("<4Q", header, 16)
            yield kind, address, in_memory


def _based(base: int, address: int) -> int:
    return address if address >= base else base + address
