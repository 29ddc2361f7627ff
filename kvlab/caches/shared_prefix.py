"""``SharedPrefix``: the rows with which several live sequences begin, in memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from kvlab.caches.codecs.base import Codec


class SharedPrefix:
    """Rows of one layer, ``[1, n_kv_heads, length, width]``, which do not change.

    Args:
        tokens: number of tokens that they stand for; None: one for each row.
        positions: true positions of the rows of compressed blocks, int32 ``[1, n_kv_heads, length]``; None for others.

    Attributes:
        length: number of rows.
        users: number of live sequences that read them; the owner of those sequences keeps it up to date.
    """

    def __init__(
        self,
        codec: Codec,
        arrays: Mapping[str, mx.array],
        tokens: int | None = None,
        positions: mx.array | None = None,
    ) -> None:
        self.codec = codec
        self.arrays = {name: mx.contiguous(array) for name, array in arrays.items()}
        self.length = next(iter(arrays.values())).shape[2]
        self.tokens = self.length if tokens is None else tokens
        self.positions = None if positions is None else mx.contiguous(positions)
        self.users = 0

    def split(self, at: int) -> tuple[SharedPrefix, SharedPrefix]:
        """Return the rows of the first ``at`` tokens and the remaining ones, with the same number of users.

        Of compressed blocks, ``at`` is a multiple of their tokens.
        """
        rows = self.length * at // self.tokens
        head, tail = self._part(0, rows, at), self._part(rows, self.length, self.tokens - at)
        return head, tail

    def _part(self, start: int, end: int, tokens: int) -> SharedPrefix:
        arrays = {name: array[:, :, start:end] for name, array in self.arrays.items()}
        positions = None if self.positions is None else self.positions[:, :, start:end]
        part = SharedPrefix(self.codec, arrays, tokens, positions)
        part.users = self.users
        return part

    @property
    def state(self) -> list[mx.array]:
        """Every array."""
        return [*self.arrays.values(), *([] if self.positions is None else [self.positions])]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.state)

    @property
    def share_nbytes(self) -> int:
        """Equal share of one user in the bytes."""
        return self.nbytes // max(1, self.users)


def join_rows(parts: Sequence[Mapping[str, mx.array]]) -> dict[str, mx.array]:
    """Concatenate rows of several parts, ``[1, n_kv_heads, length, width]``; return an empty dict for no parts."""
    if len(parts) <= 1:
        return dict(*parts)
    return {name: mx.concatenate([part[name] for part in parts], axis=2) for name in parts[0]}
