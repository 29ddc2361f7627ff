"""Read and write one block in one file.

    0   8 s   magic "KVLABBLK"
    8   u32   format version
    12  u32   bytes of the JSON header, h
    16  u64   bytes of the payload, p
    24  16 s  xxh3-128 of the payload
    40  16 s  xxh3-128 of bytes 0..40 and the header
    56        header: JSON, spaces after it up to a multiple of 64; tokens in it are hex of little-endian int32
    56 + h    payload: each array C-contiguous, at a multiple of 64

All integers are little-endian. Every read verifies both checksums, the length of the file, and that it
holds the very block that was asked for.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash

from kvlab.counts import counted
from kvlab.store import keys as k
from kvlab.store.blocks import BLOCK, CHECKPOINT, NUMERIC_KINDS, Block
from kvlab.store.read_buffers import ArraySpec, BlockLayout, ReadBuffer
from kvlab.store.ssd import vectored

MAGIC = b"KVLABBLK"
ALIGNMENT_BYTES = 64
_PREFIX = struct.Struct("<8sIIQ16s")
CHECKSUM_BYTES = 16
HEADER_OFFSET = _PREFIX.size + CHECKSUM_BYTES
SIZES_BYTES = _PREFIX.size - CHECKSUM_BYTES
MAX_HEADER_BYTES = 1 << 20

FIRST_READ_BYTES = 4096
"""Bytes of the first reading of a file: in most cases the whole header."""

MAX_BUFFERS_PER_WRITE = min(vectored.MAX_BUFFERS_PER_CALL, 512)

_KEY_FIELD, _ARRAYS_FIELD = b'{"key":"%s"', b',"arrays":['


Buffer = bytes | memoryview


class BadBlock(Exception):
    """Raised where the bytes are not the block that they should be; the message says how."""


class NewerFormat(BadBlock):
    """Raised for a block that a newer kvlab wrote."""


def encode(block: Block) -> list[Buffer]:
    """Return the file's bytes as buffers to write one after the other; contiguous arrays are not copied."""
    arrays: list[list[Any]] = []
    parts: list[Buffer] = []
    at = 0
    digest = xxhash.xxh3_128()
    for name, given in block.payload.items():
        array = np.ascontiguousarray(given)
        if array.dtype.kind not in NUMERIC_KINDS:
            raise BadBlock(f"array {name!r} has dtype {array.dtype}, which cannot be stored")
        arrays.append([name, array.dtype.str, list(given.shape), at])
        at += array.nbytes
        if array.nbytes:
            parts.append(array.reshape(-1).view(np.uint8).data)
            digest.update(parts[-1])
        if gap := -at % ALIGNMENT_BYTES:
            parts.append(bytes(gap))
            digest.update(parts[-1])
            at += gap
    ns = block.ns
    header = json.dumps(
        {
            "key": block.key.hex(),
            "parent": block.parent.hex(),
            "ns": [ns.model, ns.policy, ns.dtype, ns.block, ns.tenant],
            "kind": block.kind,
            "tokens": block.tokens.hex(),
            "start": block.start,
            "cost": block.cost,
            "arrays": arrays,
        },
        separators=(",", ":"),
    ).encode()
    header += b" " * (-(HEADER_OFFSET + len(header)) % ALIGNMENT_BYTES)
    fixed = _PREFIX.pack(MAGIC, k.FORMAT, len(header), at, digest.digest())
    seal = xxhash.xxh3_128_digest(fixed + header)
    return [fixed + seal + header, *parts]


def size_of(parts: list[Buffer]) -> int:
    return sum(len(part) for part in parts)


def write(fd: int, parts: list[Buffer]) -> int:
    """Write all of ``parts`` at the start of an open file; return the bytes written. Raises ``OSError``."""
    done = 0
    for at in range(0, len(parts), MAX_BUFFERS_PER_WRITE):
        chunk = parts[at : at + MAX_BUFFERS_PER_WRITE]
        total = size_of(chunk)
        sent = os.writev(fd, chunk)
        if sent < total:  # a short write: a signal or a disk that is nearly full; go on, or learn why not
            rest = memoryview(b"".join(chunk))
            while sent < total:
                sent += os.write(fd, rest[sent:])
        done += total
    return done


def read(path: str | os.PathLike[str], key: bytes) -> Block:
    """Read the block ``key`` in ``path``, and verify it. Raises ``BadBlock`` or ``OSError``."""
    block = read_to(path, key, ReadBuffer())
    if block is None:
        raise BadBlock("it was read into other memory")
    return block


def read_to(path: str | os.PathLike[str], key: bytes, buffer: ReadBuffer) -> Block | None:
    """Do as :func:`read`, with the arrays in ``buffer``, where they last until the next reading into it.

    None: the block was wanted whole, and its arrays went straight to the memory of the sink.
    """
    fd = _open(path)
    try:
        if _read_same_layout(fd, key, buffer):
            return None
        size = os.fstat(fd).st_size
        start = os.pread(fd, FIRST_READ_BYTES, 0)
        length, _ = _check_size(start, size)  # before any memory is taken for it
        if len(start) < HEADER_OFFSET + length:
            start = os.pread(fd, HEADER_OFFSET + length, 0)
        raw, digest = _verified_header(start, length)
        offset = HEADER_OFFSET + length
        if buffer.has_sink:
            header = _parsed(raw)
            block, arrays = _block(header, None, key), _arrays(header.get("arrays"))
            targets = buffer.targets(arrays, block.length) if block.kind == BLOCK and arrays else None
            if targets is not None:
                views = _with_gaps(arrays, targets, size - offset)
                _fill(fd, views, offset, size - offset)
                _verify(views, digest)
                buffer.layout = BlockLayout(
                    arrays,
                    block.length,
                    start[:SIZES_BYTES],
                    _header_end(raw),
                    size - offset,
                    bytearray(offset),
                    bytearray(1),
                )
                return None
        data = buffer.take(size - offset)
        _fill(fd, [data.data], offset, size - offset)
    finally:
        os.close(fd)
    _verify([data.data], digest)
    data.flags.writeable = False  # shared by every reader of the block
    return _block(_parsed(raw), data, key)


def _read_same_layout(fd: int, key: bytes, buffer: ReadBuffer) -> bool:
    """Read header and arrays with one call, expecting the layout of the block before.

    False: the layout is another one, or the block is bad; the caller reads it again to find out. The key stands for
    parent, tokens and position, which are not parsed again.
    """
    layout = buffer.layout
    targets = buffer.targets(layout.arrays, layout.tokens) if layout is not None else None
    if layout is None or targets is None:
        return False
    views, start = _with_gaps(layout.arrays, targets, layout.payload_bytes), layout.header
    # One byte more than expected is asked for: it is missing only where the file ends in the right place.
    count = vectored.read(fd, [start, *views, layout.beyond], 0)
    if count != len(start) + layout.payload_bytes or start[:SIZES_BYTES] != layout.sizes:
        return False
    try:
        raw, digest = _verified_header(start, len(start) - HEADER_OFFSET)
        _verify(views, digest)
    except BadBlock:
        return False
    return raw.startswith(_KEY_FIELD % key.hex().encode()) and _header_end(raw) == layout.header_end


def _fill(fd: int, views: list[memoryview], offset: int, total: int) -> None:
    """Read ``total`` bytes into ``views``, one after the other; together they hold as many."""
    if vectored.read(fd, views, offset) == total:
        return
    for view in filter(len, views):  # cut short, by a signal or by the file's end: one by one
        flat, got = view.cast("B"), 0
        while got < len(flat):
            n = vectored.read(fd, [flat[got:]], offset + got)
            if n == 0:
                raise BadBlock("it shrank while it was read")
            got += n
        offset += got


def _with_gaps(arrays: list[ArraySpec], targets: list[memoryview], size: int) -> list[memoryview]:
    """Return memory for a whole payload of ``size`` bytes: the targets, and buffers for the gaps between arrays."""
    if arrays[-1].end == size and all(a.end == b.at for a, b in itertools.pairwise(arrays)):
        return targets
    views: list[memoryview] = []
    at, left = 0, iter(targets)
    for array in arrays:
        views += [memoryview(bytearray(array.at - at))] * (array.at > at)
        at = array.at
        while at < array.end:
            views.append(next(left))
            at += views[-1].nbytes
    return [*views, memoryview(bytearray(size - at))]


def _verify(views: list[memoryview], digest: bytes) -> None:
    found = xxhash.xxh3_128()
    for view in views:
        found.update(view)
    if found.digest() != digest:
        raise BadBlock("its payload does not match its checksum")


def _header_end(raw: bytes) -> bytes:
    """Return the end of a header, from its arrays on."""
    return raw[raw.rfind(_ARRAYS_FIELD) :].rstrip()


def _open(path: str | os.PathLike[str]) -> int:
    """Open a file to read; a link is none, and a pipe in its place does not make the reader wait."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def read_header(path: str | os.PathLike[str]) -> tuple[Block, int]:
    """Read the block in ``path`` without its arrays, and the file's size: enough to index it. Raises as ``read``."""
    with open(_open(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(HEADER_OFFSET)
        if len(start) == HEADER_OFFSET:
            start += file.read(min(_PREFIX.unpack_from(start)[2], MAX_HEADER_BYTES))
    length, _ = _check_size(start, size)
    header = _parsed(_verified_header(start, length)[0])
    try:
        key = bytes.fromhex(header["key"])
    except (KeyError, TypeError, ValueError):
        raise BadBlock("its header names no key") from None
    return _block(header, None, key), size


def _check_size(start: bytes, size: int) -> tuple[int, bytes]:
    """Check the size of a file; return header length and payload checksum."""
    if size < HEADER_OFFSET or len(start) < HEADER_OFFSET:
        raise BadBlock("it is too short to be a block")
    magic, version, length, payload, digest = _PREFIX.unpack_from(start)
    if magic != MAGIC:
        raise BadBlock("it is not a kvlab block")
    if version > k.FORMAT:
        raise NewerFormat(f"it has format {version}, not {k.FORMAT}")
    if version != k.FORMAT:
        raise BadBlock(f"it has format {version}, not {k.FORMAT}")
    if length > MAX_HEADER_BYTES or size != HEADER_OFFSET + length + payload:
        raise BadBlock(f"it has {counted(size, 'byte')}, not {HEADER_OFFSET + length + payload}")
    return length, digest


def _verified_header(start: bytes | bytearray, length: int) -> tuple[bytes, bytes]:
    """Verify the header of ``length`` bytes; return it and the payload's checksum."""
    raw = bytes(start[HEADER_OFFSET : HEADER_OFFSET + length])
    if xxhash.xxh3_128_digest(start[: _PREFIX.size] + raw) != start[_PREFIX.size : HEADER_OFFSET]:
        raise BadBlock("its header does not match its checksum")
    return raw, bytes(start[_PREFIX.size - CHECKSUM_BYTES : _PREFIX.size])


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise BadBlock("its header is not JSON")
    return header


def _arrays(raw: Any) -> list[ArraySpec]:
    """Return the arrays that a header lists, in the order of their offsets."""
    try:
        stored = [ArraySpec(str(n), np.dtype(t), tuple(map(int, shape)), int(at)) for n, t, shape, at in raw]
    except (TypeError, ValueError) as error:
        raise BadBlock(f"its header makes no sense ({error})") from None
    for array in stored:
        if array.dtype.kind not in NUMERIC_KINDS:
            raise BadBlock(f"its array {array.name!r} has dtype {array.dtype}")
    return stored


def _block(header: Mapping[str, Any], data: np.ndarray | None, key: bytes) -> Block:
    """Return the block that a header describes, with its arrays in ``data``, or without them."""
    try:
        parent, tokens, kind = bytes.fromhex(header["parent"]), bytes.fromhex(header["tokens"]), int(header["kind"])
        name = {BLOCK: k.chain, CHECKPOINT: k.checkpoint_key}[kind](parent, tokens)
        if bytes.fromhex(header["key"]) != key or name != key:
            raise BadBlock("it holds another block")
        ns, start, cost = k.Namespace(*header["ns"]), int(header["start"]), float(header["cost"])
        payload = {}
        if data is not None:
            payload = {one.name: np.ndarray(one.shape, one.dtype, data, one.at) for one in _arrays(header["arrays"])}
    except (KeyError, TypeError, ValueError) as error:
        raise BadBlock(f"its header makes no sense ({error})") from None
    return Block(key, parent, ns, kind, tokens, start, cost, payload)
