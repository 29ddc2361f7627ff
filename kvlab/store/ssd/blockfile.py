"""One block in one file.

    0   8 s   magic "KVLABBLK"
    8   u32   format version
    12  u32   bytes of the JSON header, h
    16  u64   bytes of the payload, p
    24  16 s  xxh3-128 of the payload
    40  16 s  xxh3-128 of bytes 0..40 and the header
    56        header: JSON, spaces after it up to a multiple of 64; tokens in it are hex of little-endian int32
    56 + h    payload: each array C-contiguous, at a multiple of 64

All integers are little-endian. Both checksums are verified on every read, so is that the file has exactly the length
it says and holds the very block that was asked for.
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

from kvlab.store import keys as k
from kvlab.store.blocks import BLOCK, CHECKPOINT, NUMBERS, Block
from kvlab.store.read_buffers import ArraySpec, BlockLayout, ReadBuffer
from kvlab.store.ssd import vectored

MAGIC = b"KVLABBLK"
ALIGN = 64
_FIXED = struct.Struct("<8sIIQ16s")
_SUM = 16
_START = _FIXED.size + _SUM
_SIZES = _FIXED.size - _SUM
_MOST_HEADER = 1 << 20
_OPENING, _ARRAYS = b'{"key":"%s"', b',"arrays":['
_FIRST = 4096  # bytes of the first reading: mostly the whole header


Buffer = bytes | memoryview


class BadBlock(Exception):
    """The bytes are not the block they should be; the message says how."""


def encode(block: Block) -> list[Buffer]:
    """The file's bytes as buffers to write one after the other; arrays that are contiguous are not copied."""
    arrays: list[list[Any]] = []
    parts: list[Buffer] = []
    at = 0
    digest = xxhash.xxh3_128()
    for name, given in block.payload.items():
        array = np.ascontiguousarray(given)
        if array.dtype.kind not in NUMBERS:
            raise BadBlock(f"array {name!r} has dtype {array.dtype}, which cannot be stored")
        arrays.append([name, array.dtype.str, list(given.shape), at])
        at += array.nbytes
        if array.nbytes:
            parts.append(array.reshape(-1).view(np.uint8).data)
            digest.update(parts[-1])
        if gap := -at % ALIGN:
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
    header += b" " * (-(_START + len(header)) % ALIGN)
    fixed = _FIXED.pack(MAGIC, k.FORMAT, len(header), at, digest.digest())
    seal = xxhash.xxh3_128_digest(fixed + header)
    return [fixed + seal + header, *parts]


def size_of(parts: list[Buffer]) -> int:
    return sum(len(part) for part in parts)


def write(fd: int, parts: list[Buffer]) -> int:
    """Write all of ``parts`` at the start of an open file; bytes written. Raises ``OSError``."""
    done = 0
    batch = min(vectored.MAX_BUFFERS_PER_CALL, 512)
    for at in range(0, len(parts), batch):
        chunk = parts[at : at + batch]
        total = size_of(chunk)
        sent = os.writev(fd, chunk)
        if sent < total:  # a short write: a signal or a disk that is nearly full; go on, or learn why not
            rest = memoryview(b"".join(chunk))
            while sent < total:
                sent += os.write(fd, rest[sent:])
        done += total
    return done


def read(path: str | os.PathLike[str], key: bytes) -> Block:
    """The block ``key`` in ``path``, verified. Raises ``BadBlock``, or ``OSError`` when it cannot be opened or read."""
    block = read_to(path, key, ReadBuffer())
    if block is None:
        raise BadBlock("it went elsewhere")
    return block


def read_to(path: str | os.PathLike[str], key: bytes, buffer: ReadBuffer) -> Block | None:
    """As :func:`read`, with the arrays in ``buffer``, where they last until the next reading into it.

    None: the block was wanted whole, and its arrays went to the rooms that ``buffer`` has for them.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        if _reads_alike(fd, key, buffer):
            return None
        size = os.fstat(fd).st_size
        start = os.pread(fd, _FIRST, 0)
        length, _ = _check_size(start, size)  # before any memory is taken for it
        if len(start) < _START + length:
            start = os.pread(fd, _START + length, 0)
        raw, digest = _sealed(start, length)
        offset = _START + length
        if buffer.has_sink:
            header = _parsed(raw)
            block, stored = _block(header, None, key), _arrays(header.get("arrays"))
            rooms = buffer.targets(stored, block.length) if block.kind == BLOCK and stored else None
            if rooms is not None:
                views = _with_gaps(stored, rooms, size - offset)
                _fill(fd, views, offset, size - offset)
                _verify(views, digest)
                buffer.form = BlockLayout(
                    stored, block.length, start[:_SIZES], _ending(raw), size - offset, bytearray(offset), bytearray(1)
                )
                return None
        data = buffer.take(size - offset)
        _fill(fd, [data.data], offset, size - offset)
    finally:
        os.close(fd)
    _verify([data.data], digest)
    data.flags.writeable = False  # shared by every reader of the block
    return _block(_parsed(raw), data, key)


def _reads_alike(fd: int, key: bytes, buffer: ReadBuffer) -> bool:
    """Read header and arrays at once, on the guess that the block has the form of the one before.

    False: it has not, or something is wrong with it; a closer look tells. What its key says, parent, tokens and with
    them its place, is not read again.
    """
    form = buffer.form
    rooms = buffer.targets(form.stored, form.tokens) if form is not None else None
    if form is None or rooms is None:
        return False
    views, head = _with_gaps(form.stored, rooms, form.payload), form.head
    # One byte more than there is: no more is read only where the file ends in the right place.
    count = vectored.read(fd, [head, *views, form.beyond], 0)
    if count != len(head) + form.payload or head[:_SIZES] != form.sizes:
        return False
    try:
        raw, digest = _sealed(head, len(head) - _START)
        _verify(views, digest)
    except BadBlock:
        return False
    return raw.startswith(_OPENING % key.hex().encode()) and _ending(raw) == form.ending


def _fill(fd: int, views: list[memoryview], offset: int, total: int) -> None:
    """Read ``total`` bytes into ``views``, which are as long together, one behind the other."""
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


def _with_gaps(stored: list[ArraySpec], rooms: list[memoryview], size: int) -> list[memoryview]:
    """Rooms for all of a payload of ``size`` bytes: with the gaps between arrays."""
    if stored[-1].end == size and all(a.end == b.at for a, b in itertools.pairwise(stored)):
        return rooms
    views: list[memoryview] = []
    at, left = 0, iter(rooms)
    for array in stored:
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


def _ending(raw: bytes) -> bytes:
    """How a header ends: with its arrays."""
    return raw[raw.rfind(_ARRAYS) :].rstrip()


def read_header(path: str | os.PathLike[str]) -> tuple[Block, int]:
    """The block in ``path`` without its arrays, and the file's size: enough to index it. Raises as ``read``."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_START)
        if len(start) == _START:
            start += file.read(min(_FIXED.unpack_from(start)[2], _MOST_HEADER))
    length, _ = _check_size(start, size)
    header = _parsed(_sealed(start, length)[0])
    try:
        key = bytes.fromhex(header["key"])
    except (KeyError, TypeError, ValueError):
        raise BadBlock("its header names no key") from None
    return _block(header, None, key), size


def _check_size(start: bytes, size: int) -> tuple[int, bytes]:
    """Header length and payload checksum of a file of ``size`` bytes."""
    if size < _START or len(start) < _START:
        raise BadBlock("it is too short to be a block")
    magic, version, length, payload, digest = _FIXED.unpack_from(start)
    if magic != MAGIC:
        raise BadBlock("it is not a kvlab block")
    if version != k.FORMAT:
        raise BadBlock(f"it has format {version}, not {k.FORMAT}")
    if length > _MOST_HEADER or size != _START + length + payload:
        raise BadBlock(f"it has {size} bytes, not {_START + length + payload}")
    return length, digest


def _sealed(start: bytes | bytearray, length: int) -> tuple[bytes, bytes]:
    """The header of ``length`` bytes, verified, and the payload's checksum."""
    raw = bytes(start[_START : _START + length])
    if xxhash.xxh3_128_digest(start[: _FIXED.size] + raw) != start[_FIXED.size : _START]:
        raise BadBlock("its header does not match its checksum")
    return raw, bytes(start[_FIXED.size - _SUM : _FIXED.size])


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise BadBlock("its header is not JSON")
    return header


def _arrays(raw: Any) -> list[ArraySpec]:
    """The arrays that a header lists, in the order of their places."""
    try:
        stored = [ArraySpec(str(n), np.dtype(t), tuple(map(int, shape)), int(at)) for n, t, shape, at in raw]
    except (TypeError, ValueError) as error:
        raise BadBlock(f"its header makes no sense ({error})") from None
    for array in stored:
        if array.dtype.kind not in NUMBERS:
            raise BadBlock(f"its array {array.name!r} has dtype {array.dtype}")
    return stored


def _block(header: Mapping[str, Any], data: np.ndarray | None, key: bytes) -> Block:
    """The block that a header describes, with its arrays in ``data``, or without them."""
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
