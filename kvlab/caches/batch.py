"""``BatchLayerCache``: sequences side by side, each with storage of its own.

A batch is a list: no row is padded, and none is copied when a sequence joins or leaves. Each sequence attends to its
own rows, so that its result is the same in a batch and alone.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from kvlab.caches.codecs.tiled_attention import TilePace

MAX_JOINED_BYTES = 4 << 20
"""Bytes of rows that sequences join for attention, after which a batch waits: MLX would allocate those of all first.

Below, waiting costs more than the memory is worth.
"""


class BatchLayerCache:
    """The layer caches of several sequences, with mlx-lm's batch protocol. Owns no arrays.

    Attributes:
        sequences: a layer cache for each sequence, in the order of the batch.
    """

    def __init__(self, sequences: list[Any]) -> None:
        self.sequences = list(sequences)
        self._waiting: list[int] | None = None

    @property
    def offset(self) -> mx.array | int:
        """True positions of the next tokens, int32 ``[batch]``; a number where there is one sequence."""
        if len(self.sequences) == 1:
            return int(self.sequences[0].offset)
        return mx.array([sequence.offset for sequence in self.sequences])

    def prepare(self, *, lengths: list[int], right_padding: list[int]) -> None:
        """Expect right-padded tokens, of which only the first ``lengths[i]`` of sequence i are real."""
        self._waiting = list(lengths)

    def finalize(self) -> None:
        """Expect tokens without padding again."""
        self._waiting = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Give each sequence its real rows of ``[batch, n_kv_heads, n, head_dim]``."""
        if self._is_lone:
            return self.sequences[0].update_and_fetch(keys, values)  # type: ignore[no-any-return]
        for i, (sequence, real) in enumerate(zip(self.sequences, self._real(keys.shape[2]), strict=True)):
            if real:
                sequence.update_and_fetch(keys[i : i + 1, :, :real], values[i : i + 1, :, :real])
        return keys, values

    def attend(self, queries: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None) -> mx.array:
        """Compute attention ``[batch, n_heads, n, v_head_dim]``; rows of padding are zeros."""
        if self._is_lone:
            return self.sequences[0].attend(queries, scale=scale, mask=mask, sinks=sinks)  # type: ignore[no-any-return]
        outs: list[mx.array | None] = []
        pace, joined = TilePace(), 0
        for i, (sequence, real) in enumerate(zip(self.sequences, self.claim(queries.shape[2]), strict=True)):
            out = sequence.attend(queries[i : i + 1, :, :real], scale=scale, mask=mask, sinks=sinks) if real else None
            outs.append(out)
            joined += getattr(sequence, "joined_nbytes", 0)
            if out is not None and joined >= MAX_JOINED_BYTES:
                pace.next_tile(out)
                joined = 0
        width = next((out.shape[-1] for out in outs if out is not None), queries.shape[-1])
        return mx.concatenate([self._padded(out, queries, width) for out in outs])

    @property
    def _is_lone(self) -> bool:
        """Whether there is one sequence without padding, which needs no slices, lists and copies in every layer."""
        return self._waiting is None and len(self.sequences) == 1

    def skip_attention(self, count: int) -> None:
        """Count ``count`` tokens as attended to: their rows are stored, and their attention output is not used."""
        for sequence, real in zip(self.sequences, self.claim(count), strict=True):
            sequence.skip_attention(real)

    @staticmethod
    def _padded(out: mx.array | None, queries: mx.array, width: int) -> mx.array:
        _, heads, count, _ = queries.shape
        if out is None:
            return mx.zeros((1, heads, count, width), queries.dtype)
        missing = count - out.shape[2]
        return mx.pad(out, [(0, 0), (0, 0), (0, missing), (0, 0)]) if missing else out

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return a placeholder, because each sequence makes its own mask in ``attend``."""
        return None if n == 1 else "causal"

    def filter(self, keep: list[int]) -> None:
        """Keep the sequences ``keep``, in that order."""
        self.sequences = [self.sequences[i] for i in keep]

    def extend(self, other: BatchLayerCache) -> None:
        """Append the sequences of ``other``."""
        self.sequences.extend(other.sequences)

    def extract(self, index: int) -> Any:
        """Return the live cache of one sequence: the object itself, not a copy."""
        return self.sequences[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchLayerCache:
        # mlx-lm copies a batch only to split it in two, and each half keeps other sequences.
        return BatchLayerCache(self.sequences)

    @property
    def state(self) -> list[mx.array]:
        """Every array of the sequences, for ``mx.eval``."""
        return [array for sequence in self.sequences for array in sequence.state]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of all sequences."""
        return sum(sequence.nbytes for sequence in self.sequences)

    def size(self) -> int:
        """Return the length of the longest sequence."""
        return max((sequence.size() for sequence in self.sequences), default=0)

    def empty(self) -> bool:
        """Return whether all sequences are empty."""
        return all(sequence.empty() for sequence in self.sequences)

    def is_trimmable(self) -> bool:
        """Return whether all sequences can be trimmed."""
        return all(sequence.is_trimmable() for sequence in self.sequences)

    def trim(self, n: int) -> int:
        """Remove the last ``n`` tokens of every sequence; return the fewest that were removed."""
        return min((sequence.trim(n) for sequence in self.sequences), default=0)

    def claim(self, count: int) -> list[int]:
        """Return how many of each sequence's next ``count`` tokens are real, and count them as used."""
        reals = self._real(count)
        if self._waiting is not None:
            self._waiting = [left - real for left, real in zip(self._waiting, reals, strict=True)]
        return reals

    def _real(self, count: int) -> list[int]:
        if self._waiting is None:
            return [count] * len(self.sequences)
        return [min(count, left) for left in self._waiting]
