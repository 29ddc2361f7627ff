"""``Codec``: how K and V are written into arrays, and how attention reads them.

A codec turns ``[batch, n_kv_heads, n, width]`` into named arrays of which axis 2 is the token axis. Names start with
``k`` or ``v``. Codecs hold no arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx

from kvlab.backends import Backend
from kvlab.backends.base import Segment
from kvlab.policies import Module

Arrays = Mapping[str, mx.array]


class Codec(ABC):
    """Writes and reads rows. All methods are pure.

    A concrete subclass sets ``module``, the policy module that it carries out, and is from then on known to
    :func:`kvlab.caches.codecs.make_codec`. It is made with that module's value.

    Attributes:
        group_rows: rows that are encoded together; 1 where each row is encoded on its own.
        recent_rows: fewest newest rows that stay as the model computes them.
        is_exact: attention reads the model's own keys and values.
    """

    module: ClassVar[type[Module]]
    group_rows: int = 1
    recent_rows: int = 0
    is_exact: ClassVar[bool] = False

    def for_layer(self, layer: int, n_layers: int) -> Codec:
        """Return the codec of one layer of ``n_layers``: this one, unless a subclass writes some layers otherwise."""
        return self

    @abstractmethod
    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        """Write rows ``[batch, n_kv_heads, n, head_dim]`` into named arrays; n is a multiple of ``group_rows``.

        An array has a row for each token, or one for each group. Raises ModelError when the heads do not fit the codec.
        """

    @abstractmethod
    def decode(self, rows: Arrays) -> Segment:
        """Return keys and values as attention reads them, in the model's dtype."""

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        """Multiply float32 queries ``[batch, n_kv_heads, n, head_dim]`` with the keys, in float32."""
        return queries @ mx.swapaxes(self.decode(rows)[0], -1, -2).astype(mx.float32)

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        """Multiply float32 weights ``[batch, n_kv_heads, n, length]`` with the values, in float32."""
        return weights @ self.decode(rows)[1].astype(mx.float32)

    def attend(
        self,
        backend: Backend,
        queries: mx.array,
        segments: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> mx.array:
        """Compute attention ``[batch, n_heads, n, v_head_dim]``, see :meth:`kvlab.backends.Backend.attention`.

        This decodes all rows first; a codec that can attend to encoded rows overrides it.
        """
        return backend.attention(queries, [self.decode(rows) for rows in segments], scale, mask, sinks)


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows with their codec. Implements :class:`kvlab.backends.base.KeyValueRows`."""

    codec: Codec
    arrays: Arrays

    def scores(self, queries: mx.array) -> mx.array:
        return self.codec.scores(queries, self.arrays)

    def mix(self, weights: mx.array) -> mx.array:
        return self.codec.mix(weights, self.arrays)

    @property
    def plain(self) -> Segment | None:
        return self.codec.decode(self.arrays) if self.codec.is_exact else None
