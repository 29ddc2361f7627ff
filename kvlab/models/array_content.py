"""Digests of the content of arrays, each computed once until the array changes."""

from __future__ import annotations

import copy
import ctypes
import os
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
import xxhash

from kvlab.backends import device

WORD_BYTES = ctypes.sizeof(ctypes.c_size_t)
HASH_THREADS = max(1, min(4, os.cpu_count() or 1))
"""Threads that hash arrays: the work is bound by memory."""


class ArrayDigests:
    """Digests of arrays, remembered per array object. An array that is written in place (``w[0] = 1``) is read again.

    Nothing here keeps an array alive that its model has let go.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Digested] = {}

    def update(self, arrays: Iterable[mx.array]) -> None:
        """Compute the digests that are not known; evaluates the arrays."""
        new = [array for array in arrays if not self._is_known(array)]
        if not new:
            return
        mx.eval(new)
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            hashed = list(pool.map(_digest, map(_host_bytes, new)))
        for array, digest in zip(new, hashed, strict=True):
            self._remember(array, digest)

    def __getitem__(self, array: mx.array) -> bytes:
        """Return the 16-byte digest of the content in row order, without shape and dtype."""
        if not self._is_known(array):
            self.update([array])
        return self._known[id(array)].digest

    def _is_known(self, array: mx.array) -> bool:
        known = self._known.get(id(array))
        return (
            known is not None
            and known.reference() is array
            and descriptor(known.alias).value == descriptor(array).value
        )

    def _remember(self, array: mx.array, digest: bytes) -> None:
        key, known = id(array), self._known

        def forget(reference: Any) -> None:
            if key in known and known[key].reference is reference:
                del known[key]

        known[key] = _Digested(weakref.ref(array, forget), copy.copy(array), digest)


@dataclass(frozen=True, eq=False)
class _Digested:
    """``alias`` refers to the same content as the array did; MLX writes into no memory that two arrays refer to."""

    reference: weakref.ref[mx.array]
    alias: mx.array
    digest: bytes


class Descriptor(Protocol):
    """``value`` is the number of what an array refers to: it changes when the array is written in place."""

    @property
    def value(self) -> int: ...


def descriptor(array: mx.array) -> Descriptor:
    """Return the descriptor of ``array``; read it only while the array lives. Reading it evaluates nothing."""
    word = _descriptor_word()
    return _Address(array) if word is None else ctypes.c_size_t.from_address(id(array) + word)


@dataclass(frozen=True, eq=False)
class _Address:
    """Takes the address of the content for its number, where an array object cannot be looked into."""

    array: mx.array

    @property
    def value(self) -> int:
        return int(_host_view(self.array).__array_interface__["data"][0]) if self.array.size else 0


@cache
def _descriptor_word() -> int | None:
    """Find where an array object keeps the pointer to what it refers to; None where it cannot be told.

    It is the first word that an alias shares, and that another array and a write in place change.
    """
    array, other = mx.zeros(4), mx.zeros(4)
    mx.eval(array, other)
    alias = copy.copy(array)
    before, shared, others = (_words(one) for one in (array, alias, other))
    array[0] = 1
    after = _words(array)
    for at, word in enumerate(before):
        if word and word == shared[at] and word not in (others[at], after[at]):
            return at * WORD_BYTES
    return None


def _words(array: mx.array) -> list[int]:
    count = type(array).__basicsize__ // WORD_BYTES
    return list((ctypes.c_size_t * count).from_address(id(array)))


def _host_view(array: mx.array) -> np.ndarray:
    return np.asarray(array.reshape(-1).view(mx.uint8))


def _host_bytes(array: mx.array) -> np.ndarray:
    """The bytes of an array in row order; of a copy, where reading would move the array itself to the host."""
    if not array.size:
        return np.zeros(0, np.uint8)
    if device.shares_memory_with_host():
        return _host_view(array)
    flat = array.reshape(-1).view(mx.uint8)
    return np.asarray(flat + mx.zeros(1, mx.uint8))


def _digest(content: np.ndarray) -> bytes:
    return xxhash.xxh3_128_digest(content)
