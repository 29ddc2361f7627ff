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

import json
import os
import re
import struct
from binascii import unhexlify
from collections.abc import Mapping
from dataclasses import astuple
from types import MappingProxyType
from typing import Any

import numpy as np
import xxhash

from kvlab.store import keys as k
from kvlab.store.types import BLOCK, CHECKPOINT, NUMBERS, Block, Scratch, Stored

MAGIC = b"KVLABBLK"
ALIGN = 64
_FIXED = struct.Struct("<8sIIQ16s")
_SUM = 16
_START = _FIXED.size + _SUM
_MOST_HEADER = 1 << 20
_VIEWS = 1024  # what a system takes at once (IOV_MAX)
_FIRST = 4096  # bytes of the first reading: mostly the whole header


# A token block's header as ``encode`` writes it; any other is read as JSON.
_USUAL = re.compile(
    rb'\{"key":"([0-9a-f]{64})","parent":"([0-9a-f]{64})","ns":(\[[^\]]*\]),"kind":0,"tokens":"([0-9a-f]*)",'
    rb'"start":(\d+),"cost":([-+.0-9e]+),"arrays":(\[.*\])\} *'
)
_NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})

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
    header = json.dumps(
        {
            "key": block.key.hex(),
            "parent": block.parent.hex(),
            "ns": astuple(block.ns),
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
    batch = 512  # below any system's IOV_MAX
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


def read(path: str | os.PathLike[str], key: bytes, scratch: Scratch | None = None) -> Block:
    """The block ``key`` in ``path``, verified. Raises ``BadBlock``, or ``OSError`` when it cannot be opened or read.

    With ``scratch`` its arrays lie there, and last until the next reading into it; or they went to the rooms that it
    has for them: then ``scratch.landed`` is True and the block has no arrays.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        start = os.pread(fd, _FIRST, 0)
        length, _ = _check_size(start, size)  # before any memory is taken for it
        if len(start) < _START + length:
            start = os.pread(fd, _START + length, 0)
        raw, digest = _sealed(start, length)
        offset = _START + length
        if scratch is not None and scratch.has_rooms:
            scratch.landed = False
            block, stored = _read_quickly(raw, key, scratch)
            rooms = scratch.rooms(stored, block.start, block.length) if block.kind == BLOCK else None
            if rooms is not None:
                _land(fd, offset, size - offset, stored, rooms, digest)
                scratch.landed = True
                return block
        data = np.empty(size - offset, np.uint8) if scratch is None else scratch.take(size - offset)
        _fill(fd, [data.data], offset, size - offset)
    finally:
        os.close(fd)
    if xxhash.xxh3_128_digest(data.data) != digest:
        raise BadBlock("its payload does not match its checksum")
    data.flags.writeable = False  # shared by every reader of the block
    return _block(_parsed(raw), data, key)


def _read_quickly(raw: bytes, key: bytes, scratch: Scratch) -> tuple[Block, list[Stored]]:
    """The block of a header without its arrays, and these: what most headers of a chain have in common is known."""
    found = _USUAL.fullmatch(raw)
    if found is None:
        header = _parsed(raw)
        return _block(header, None, key), _arrays(header.get("arrays"))
    named, parent, ns, tokens, start, cost, arrays = found.groups()
    forms = scratch.forms
    if arrays not in forms:
        forms[arrays] = _arrays(json.loads(arrays))
    if ns not in forms:
        forms[ns] = k.Namespace(*json.loads(ns))
    block = Block(
        key, unhexlify(parent), forms[ns], BLOCK, unhexlify(tokens), int(start), float(cost), _NOTHING
    )  # fmt: skip
    if unhexlify(named) != key or k.chain(block.parent, block.tokens) != key:
        raise BadBlock("it holds another block")
    return block, forms[arrays]


def _fill(fd: int, views: list[memoryview], offset: int, total: int) -> None:
    """Read ``total`` bytes into ``views``, which are as long together, one behind the other."""
    if len(views) < _VIEWS and os.preadv(fd, views, offset) == total:
        return
    for view in views:  # too many at once, or a short reading: one by one
        got = 0
        while got < len(view):
            n = os.preadv(fd, [view[got:]], offset + got)
            if n == 0:
                raise BadBlock("it shrank while it was read")
            got += n
        offset += got


def _land(fd: int, offset: int, size: int, stored: list[Stored], rooms: list[list[memoryview]], digest: bytes) -> None:
    """Read a payload of ``size`` bytes straight into the rooms of its arrays, and verify it there."""
    views: list[memoryview] = []
    end = 0
    for array, pieces in zip(stored, rooms, strict=True):
        if array.at > end:
            views.append(memoryview(bytearray(array.at - end)))
        views += pieces
        end = array.at + array.nbytes
    if size > end:
        views.append(memoryview(bytearray(size - end)))
    _fill(fd, views, offset, size)
    found = xxhash.xxh3_128()
    for view in views:
        found.update(view)
    if found.digest() != digest:
        raise BadBlock("its payload does not match its checksum")


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


def _check_size(start: bytes | memoryview, size: int) -> tuple[int, bytes]:
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


def _sealed(start: bytes, length: int) -> tuple[bytes, bytes]:
    """The header of ``length`` bytes, verified, and the payload's checksum."""
    raw = start[_START : _START + length]
    if xxhash.xxh3_128_digest(start[: _FIXED.size] + raw) != start[_FIXED.size : _START]:
        raise BadBlock("its header does not match its checksum")
    return raw, start[_FIXED.size - 16 : _FIXED.size]


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise BadBlock("its header is not JSON")
    return header


def _arrays(raw: Any) -> list[Stored]:
    """The arrays that a header lists, in the order of their places."""
    try:
        stored = [Stored(str(n), np.dtype(t), tuple(map(int, shape)), int(at)) for n, t, shape, at in raw]
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
