"""Read one stretch of a file into many buffers, on every POSIX system."""

from __future__ import annotations

import os
from collections.abc import Sequence

FALLBACK_MAX_BUFFERS = 16
"""Buffers that every POSIX system takes in one call (_XOPEN_IOV_MAX)."""


def max_buffers() -> int:
    """Return how many buffers the system takes in one call."""
    try:
        limit = os.sysconf("SC_IOV_MAX")
    except (OSError, ValueError):
        return FALLBACK_MAX_BUFFERS
    return limit if limit > 0 else FALLBACK_MAX_BUFFERS


MAX_BUFFERS_PER_CALL = max_buffers()


def read(fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
    """Read from ``offset`` on into ``buffers``, one after the other; return the bytes read.

    They are fewer than the buffers hold where the file ends, or where a call was cut short. The file's own position may
    change.
    """
    read_at = getattr(os, "preadv", None) or _seek_and_read
    if len(buffers) <= MAX_BUFFERS_PER_CALL:
        return read_at(fd, buffers, offset)
    done = 0
    for first in range(0, len(buffers), MAX_BUFFERS_PER_CALL):
        some = buffers[first : first + MAX_BUFFERS_PER_CALL]
        count = read_at(fd, some, offset + done)
        done += count
        if count < sum(memoryview(buffer).nbytes for buffer in some):
            break
    return done


def _seek_and_read(fd: int, buffers: Sequence[bytearray | memoryview], offset: int) -> int:
    """Do what ``os.preadv`` does, which macOS has from version 11 on only."""
    os.lseek(fd, offset, os.SEEK_SET)
    return os.readv(fd, buffers)
