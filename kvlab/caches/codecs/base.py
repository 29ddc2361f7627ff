"""Codecs at work: how K and V are written into arrays, and how attention reads them.

A codec turns ``[batch, n_kv_heads, n, width]`` into named arrays of which axis 2 is the token axis. Names start with
``k`` or ``v``. Codecs hold no arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import mlx.core as mx

Arrays = Mapping[str, mx.array]
Sinks = mx.array | None


class Codec(Protocol):
    """How rows are written and read. All methods are pure."""

    def encode(self, keys: mx.array, values: mx.array) -> dict[str, mx.array]:
        """Named arrays for new rows. Raises ModelError when the heads do not fit the codec."""
        ...

    def decode(self, rows: Arrays) -> tuple[mx.array, mx.array]:
        """Keys and values as attention sees them."""
        ...

    def scores(self, queries: mx.array, rows: Arrays) -> mx.array:
        """``queries @ keys^T`` for ``[batch, n_kv_heads, n, head_dim]``."""
        ...

    def mix(self, weights: mx.array, rows: Arrays) -> mx.array:
        """``weights @ values`` for ``[batch, n_kv_heads, n, length]``."""
        ...

    def attend(
        self,
        queries: mx.array,
        runs: Sequence[Arrays],
        scale: float,
        mask: mx.array | str | None,
        sinks: Sinks,
    ) -> mx.array:
        """Attention ``[1, n_heads, n, v_head_dim]``: see :func:`kvlab.backends.attention.segmented_attention`."""
        ...
