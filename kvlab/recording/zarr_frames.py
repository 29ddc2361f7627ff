"""Polars frames as Zarr v3 groups: one array per column, checksummed, read back exactly.

Columns are 64-bit integers, 64-bit floats, booleans or strings; a column with nulls has a second array under `valid/`.
"""

from __future__ import annotations

import os
import shutil
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

_CHUNK_VALUES = 1 << 18  # 2 MB of numbers
_DTYPES: dict[str, Any] = {"int64": pl.Int64, "float64": pl.Float64, "bool": pl.Boolean, "string": pl.String}


def write_frame(parent: zarr.Group, name: str, frame: pl.DataFrame) -> None:
    """Add `frame` as the group `name`. Narrow numbers are widened; other values become strings."""
    group = parent.create_group(name)
    columns: list[dict[str, Any]] = []
    for column in frame.iter_columns():
        kind = _kind(column.dtype)
        nulls = column.null_count() > 0
        values = _filled(column, kind)
        _write_array(group, column.name, values, kind)
        entry = {"name": column.name, "dtype": kind, "crc32": _crc(values)}
        if nulls:
            valid = column.is_not_null().to_numpy()
            _write_array(group, f"valid/{column.name}", valid, "bool")
            entry["valid_crc32"] = _crc(valid)
        columns.append(entry)
    group.attrs.update({"rows": frame.height, "columns": columns})


def read_frame(group: zarr.Group) -> pl.DataFrame:
    """Read a frame of `write_frame`. Raises ValueError where a checksum does not match or a chunk is missing."""
    columns = []
    attrs: Any = group.attrs
    for entry in attrs["columns"]:
        name = entry["name"]
        values = _read_array(group, name, entry["crc32"])
        column = pl.Series(name, values.tolist() if entry["dtype"] == "string" else values, _DTYPES[entry["dtype"]])
        if "valid_crc32" in entry:
            valid = pl.Series("valid", _read_array(group, f"valid/{name}", entry["valid_crc32"]))
            column = pl.select(pl.when(valid).then(column).alias(name)).to_series()
        if len(column) != attrs["rows"]:
            raise ValueError(f"column {name} has {len(column)} rows, not {attrs['rows']}")
        columns.append(column)
    return pl.DataFrame(columns)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if path.exists():
            old = temporary.with_suffix(".old")
            os.rename(path, old)  # a folder cannot be renamed over a filled one
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _kind(dtype: pl.DataType) -> str:
    if dtype.is_integer():
        return "int64"
    if dtype.is_float():
        return "float64"
    return "bool" if dtype == pl.Boolean else "string"


def _filled(column: pl.Series, kind: str) -> np.ndarray:
    filler: dict[str, Any] = {"int64": 0, "float64": 0.0, "bool": False, "string": ""}
    filled = column.cast(_DTYPES[kind]).fill_null(filler[kind])
    return np.array(filled.to_list(), dtype=object) if kind == "string" else filled.to_numpy()


def _write_array(group: zarr.Group, name: str, values: np.ndarray, kind: str) -> None:
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=(max(1, min(_CHUNK_VALUES, len(values))),),
        dtype=kind,
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
    )
    if len(values):
        array[:] = values


def _read_array(group: zarr.Group, name: str, crc: int) -> np.ndarray:
    array = group[name]
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is not an array")
    values = np.asarray(array[:])
    if _crc(values) != crc:  # Zarr reads a missing chunk as zeros, which its own checksums cannot see
        raise ValueError(f"the checksum of {name} does not match")
    return values


def _crc(values: np.ndarray) -> int:
    if values.dtype.kind in "OT":
        return zlib.crc32("\0".join(values.tolist()).encode())
    return zlib.crc32(np.ascontiguousarray(values).tobytes())
