"""``SharedPrefix``: the rows with which several live sequences begin, in memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from kvlab.caches.codecs.base import Codec


class SharedPrefix:
    """Rows of one layer, ``[1, n_kv_heads, length, width]``, which do not change.

    Attributes:
        length: number of rows.
        users: number of live sequences that read them; the owner of those sequences keeps it up to date.
    """

    def __init__(self, codec: Codec, arrays: Mapping[str, mx.array]) -> None:
        self.codec = codec
        self.arrays = {name: mx.contiguous(array) for name, array in arrays.items()}
        self.length = next(iter(arrays.values())).shape[2]
        self.users = 0

    def split(self, at: int) -> tuple[SharedPrefix, SharedPrefix]:
        """Return the first ``at`` rows and the remaining ones, with the same number of users."""
        halves = (
            SharedPrefix(self.codec, {name: array[:, :, :at] for name, array in self.arrays.items()}),
            SharedPrefix(self.codec, {name: array[:, :, at:] for name, array in self.arrays.items()}),
        )
        for half in halves:
            half.users = self.users
        return halves

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())


def join_rows(parts: Sequence[Mapping[str, mx.array]]) -> dict[str, mx.array]:
    """Concatenate rows of several parts, ``[1, n_kv_heads, length, width]``; return an empty dict for no parts."""
    if len(parts) <= 1:
        return dict(*parts)
    return {name: mx.concatenate([part[name] for part in parts], axis=2) for name in parts[0]}
