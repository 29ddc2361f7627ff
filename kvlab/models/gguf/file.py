"""``GgufFile``: the metadata and tensors of a GGUF file.

The header is read here in one pass: the ``gguf`` package makes an array object of every token, which takes seconds for
a vocabulary of 262,144. The formats of weights are that package's.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kvlab.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT_BYTES = 32
MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Kinds of values by the number that stands for them in a file, as formats of ``struct``."""


def is_gguf(path: Path) -> bool:
    """Return whether a file begins as a GGUF file does, whatever its name. Raises ModelError where it is unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: ``shape`` is in row order, as NumPy's; ``offset`` counts bytes from the file's start."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A file whose header has been read, and whose tensors are read one by one.

    Attributes:
        metadata: values by key; arrays are lists.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    _content: np.ndarray

    @staticmethod
    def open(path: Path) -> GgufFile:
        """Read the header. Raises ModelError for a file that is none, is cut, or is a part of several."""
        try:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        header = _Header(path, content)
        metadata, tensors = header.read()
        parts = metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise ModelError(
                f"{path} is one of {parts} parts of a model; make one file of them with llama.cpp's "
                "llama-gguf-split --merge"
            )
        return GgufFile(path, metadata, tensors, np.frombuffer(content, np.uint8))

    @property
    def architecture(self) -> str:
        """The name of the model's family in llama.cpp, such as ``llama``."""
        return str(self.metadata.get("general.architecture", ""))

    def value(self, key: str, default: Any = None) -> Any:
        """Return a value of the model's family: ``value("block_count")`` is that of ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None) -> Any:
        """Return a number of the model's family. Raises ModelError where it is missing, or differs by layer."""
        found = self.value(key, default)
        if isinstance(found, list) and len(set(found)) == 1:
            found = found[0]
        if isinstance(found, bool) or not isinstance(found, int | float):
            what = "is not the same in all layers" if isinstance(found, list) and found else "is missing"
            raise ModelError(
                f"{self.path}: {self.architecture}.{key} {what}; only plain models of its family can be used"
            )
        return found

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in float32, expanded where it is quantized. Raises ModelError for a format not known."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        tensor = self.tensors[name]
        content = self._content[tensor.offset : tensor.offset + tensor.nbytes]
        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        if tensor.kind in plain:
            return content.view(plain[tensor.kind]).reshape(tensor.shape).astype(np.float32)
        try:
            return dequantize(content.reshape(quant_shape_to_byte_shape(tensor.shape, tensor.kind)), tensor.kind)
        except NotImplementedError as error:
            raise ModelError(
                f"{self.path} holds weights in the format {tensor.kind.name}, which cannot be read; take a file in "
                "Q8_0, Q4_K_M or F16"
            ) from error


class _Header:
    """Reads a file's header from its start; every step is checked against the end of the file."""

    def __init__(self, path: Path, content: Any) -> None:
        self.path, self.content, self.size, self.at = path, content, len(content), 0

    def read(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        if self.content[: len(MAGIC)] != MAGIC:
            raise ModelError(f"{self.path} is no GGUF file: it does not begin with the letters GGUF; give one that is")
        self.at = len(MAGIC)
        version = self.scalar("<I")
        if version not in VERSIONS:
            what = "is for computers of the other byte order" if not version & 0xFFFF else f"is of version {version}"
            raise ModelError(f"{self.path} {what}; kvlab reads GGUF of version 2 and 3, convert it anew with llama.cpp")
        tensor_count, value_count = self.scalar("<Q"), self.scalar("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(value_count):
            key = self.string()
            metadata[key] = self.value(self.scalar("<I"))
        infos = [self.tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError(f"{self.path}: general.alignment is {alignment!r}; the file is damaged, fetch it again")
        start = math.ceil(self.at / alignment) * alignment
        return metadata, {name: self.tensor(name, start + offset, *about) for name, offset, *about in infos}

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(self.format(kind))
        item, count = self.scalar("<I"), self.scalar("<Q")
        if item == _STRING:
            return self.strings(count)
        if item == _ARRAY:
            return [self.value(_ARRAY) for _ in range(self.possible(count, 12))]
        kind_format = self.format(item)
        width = struct.calcsize(kind_format)
        values = np.frombuffer(self.take(self.possible(count, width) * width), np.dtype(kind_format))
        return values.tolist()

    def format(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.damaged(f"has a value of the unknown kind {kind}")
        return _SCALARS[kind]

    def scalar(self, kind: str) -> Any:
        (value,) = struct.unpack(kind, self.take(struct.calcsize(kind)))
        return float(str(np.float32(value))) if kind == "<f" else value  # 1e-05, not 9.999999747378752e-06

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        content, at, size, made = self.content, self.at, self.size, []
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(self.possible(count, 8)):
            if at + 8 > size:
                raise self.cut()
            end = at + 8 + unpack(content, at)[0]
            if end > size:
                raise self.cut()
            made.append(content[at + 8 : end])
            at = end
        self.at = at
        try:
            return [text.decode() for text in made]
        except UnicodeDecodeError as error:
            raise self.damaged("has a text that is not UTF-8") from error

    def tensor_info(self) -> tuple[Any, ...]:
        name, dimensions = self.string(), self.scalar("<I")
        if dimensions > MAX_DIMENSIONS:
            raise self.damaged(f"has a tensor of {dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self.scalar("<I"), self.scalar("<Q")
        return name, offset, shape, kind

    def tensor(self, name: str, offset: int, shape: tuple[int, ...], number: int) -> GgufTensor:
        try:
            kind, block, width = _formats()[number]
        except KeyError as error:
            raise self.damaged(
                f"holds weights in a format with the number {number}, newer than kvlab's reader"
            ) from error
        if shape and shape[-1] % block:
            raise self.damaged(f"has a tensor {name} whose rows are no whole blocks")
        nbytes = math.prod(shape) // block * width
        if offset + nbytes > self.size:
            raise self.cut()
        return GgufTensor(shape, kind, offset, nbytes)

    def take(self, count: int) -> bytes:
        start, self.at = self.at, self.at + count
        if self.at > self.size:
            raise self.cut()
        return self.content[start : self.at]

    def possible(self, count: int, width: int) -> int:
        """Return ``count`` where the rest of the file can hold as many values of ``width`` bytes."""
        if count * width > self.size - self.at:
            raise self.cut()
        return count

    def cut(self) -> ModelError:
        return ModelError(
            f"{self.path} ends too early, after {self.size:,} bytes: it is cut or damaged; fetch it again"
        )

    def damaged(self, how: str) -> ModelError:
        return ModelError(f"{self.path} {how}; it is damaged, or of another kind than kvlab reads: fetch another one")


@functools.cache
def _formats() -> dict[int, tuple[GGMLQuantizationType, int, int]]:
    """The formats of weights by number: kind, values in a block, bytes of a block."""
    from gguf.constants import GGML_QUANT_SIZES

    return {int(kind): (kind, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
