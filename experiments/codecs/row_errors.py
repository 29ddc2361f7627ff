"""How far the rows that a codec reads back, and attention over them, are from those of the model; and their bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.observed_layers import observed_caches
from kvlab.caches.retention import LayerPlace
from kvlab.policies import Policy

PREFILL_STEP = 512
STORED_DTYPE = mx.float16
"""Bytes are counted as most devices hold KV; the model is computed in float32 here."""


@dataclass(frozen=True)
class LayerRows:
    """Keys and values ``[1, n_kv_heads, tokens, head_dim]`` of one layer, and its latest queries, scaled."""

    keys: mx.array
    values: mx.array
    queries: mx.array

    def attention(self, keys: mx.array, values: mx.array) -> mx.array:
        """Compute attention ``[1, n_heads, n, head_dim]`` of the latest queries over all rows up to each query."""
        count, length = self.queries.shape[2], keys.shape[2]
        seen = mx.arange(length) <= mx.arange(length - count, length)[:, None]
        return mx.fast.scaled_dot_product_attention(self.queries, keys, values, scale=1.0, mask=seen)


def layer_rows(model: Any, tokens: Sequence[int], latest: int) -> list[LayerRows]:
    """Compute the exact rows of all layers, with the queries of the ``latest`` tokens."""
    queries: dict[int, mx.array] = {}

    def observe(cache: LayerCache, some: mx.array, scale: float) -> None:
        queries[cache.place.layer] = some * scale

    caches = observed_caches(model, observe)
    start = len(tokens) - latest
    for first in range(0, start, PREFILL_STEP):
        mx.eval(model(mx.array([list(tokens[first : min(first + PREFILL_STEP, start)])]), cache=caches))
    mx.eval(model(mx.array([list(tokens[start:])]), cache=caches))
    return [LayerRows(*cache.rows.decode(), queries[layer]) for layer, cache in enumerate(caches)]


def relative_errors(policy: Policy, layers: Sequence[LayerRows]) -> Mapping[str, float]:
    """Return squared errors over squared norms, means over layers: of ``keys``, ``values`` and ``attention``.

    ``rows`` is the mean of those of keys and values. Rows that the codec has not encoded yet count as they are.
    """
    found: dict[str, list[float]] = {"keys": [], "values": [], "attention": []}
    for layer, exact in enumerate(layers):
        cache = LayerCache(policy, LayerPlace(layer, len(layers)))
        cache.rows.append(exact.keys, exact.values)
        keys, values = cache.rows.decode()
        pairs = {
            "keys": (exact.keys, keys),
            "values": (exact.values, values),
            "attention": (exact.attention(exact.keys, exact.values), exact.attention(keys, values)),
        }
        for name, (wanted, got) in pairs.items():
            found[name].append((mx.square(wanted - got).sum() / mx.square(wanted).sum()).item())
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return {"rows": (means["keys"] + means["values"]) / 2, **means}


def stored_bytes(policy: Policy, layers: Sequence[LayerRows]) -> int:
    """Return the bytes of all arrays that hold these rows, in 16 bits."""
    size = 0
    for layer, exact in enumerate(layers):
        cache = LayerCache(policy, LayerPlace(layer, len(layers)))
        cache.rows.append(exact.keys.astype(STORED_DTYPE), exact.values.astype(STORED_DTYPE))
        mx.eval(cache.rows.state)
        size += cache.rows.nbytes
    return size
