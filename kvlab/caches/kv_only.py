"""``KVOnlyCache``: for the last layer of a prefill, which fills the cache and whose attention output is not used."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


class KVOnlyCache:
    """Stores keys and values in a layer cache, and returns zeros in place of attention.

    Args:
        cache: a ``LayerCache`` that keeps all its rows, or a batch of them.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._width = 0

    @property
    def offset(self) -> Any:
        """Position of the next token, or of each sequence's."""
        return self._cache.offset

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return the cache's mask, for models that take it from the last layer."""
        return self._cache.make_mask(n, return_array, window_size)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append new rows ``[batch, n_kv_heads, n, head_dim]``."""
        self._width = values.shape[-1]
        return self._cache.update_and_fetch(keys, values)

    def attend(self, queries: mx.array, *, scale: float, mask: Any = None, sinks: mx.array | None = None) -> mx.array:
        """Return zeros ``[batch, n_heads, n, v_head_dim]``."""
        self._cache.skip_attention(queries.shape[2])
        return mx.zeros((*queries.shape[:3], self._width), queries.dtype)
