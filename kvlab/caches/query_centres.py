"""Measure the centres of a model's queries before RoPE, for ``triattention``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.model_layers import model_layers
from kvlab.caches.observed_layers import observed_caches
from kvlab.errors import ModelError
from kvlab.policies.scorers.model_layer import pairs_of, without_rope

PREFILL_STEP = 512
Centres = tuple[np.ndarray, np.ndarray]


def query_centres(model: nn.Module, prompts: Iterable[Sequence[int]]) -> list[Centres | None]:
    """Return each layer's mean query and mean size of its pairs of channels, both float32 ``[n_heads, head_dim]``.

    Means are over all tokens of the prompts, before RoPE. Layers without a plain KV cache have None.
    ``kvlab.policies.scorers.triattention.save_centres`` writes the file that the scorer reads.

    Raises:
        ModelError: no prompts, or a layer whose RoPE kvlab does not find.
    """
    layers = model_layers(model)
    sums: dict[int, tuple[mx.array, mx.array]] = {}
    count = 0

    def observe(cache: LayerCache, queries: mx.array, scale: float) -> None:
        rope = layers[cache.place.layer].rope
        if rope is None:
            raise ModelError(f"kvlab finds no RoPE in layer {cache.place.layer}: triattention needs one")
        _, heads, new, width = queries.shape
        at = mx.broadcast_to(mx.arange(cache.offset - new, cache.offset), (1, heads, new))
        plain = without_rope(rope, queries, at)[0]
        sizes = mx.sqrt((plain * plain) @ pairs_of(rope, width)[0])
        before = sums.get(cache.place.layer, (mx.zeros((heads, width)), mx.zeros((heads, width))))
        sums[cache.place.layer] = (before[0] + plain.sum(axis=1), before[1] + sizes.sum(axis=1))
        mx.eval(sums[cache.place.layer])

    n_layers = 0
    for prompt in prompts:
        caches = observed_caches(model, observe)
        n_layers = len(caches)
        for start in range(0, len(prompt), PREFILL_STEP):
            mx.eval(model(mx.array([list(prompt[start : start + PREFILL_STEP])]), cache=caches))
        count += len(prompt)
    if not count:
        raise ModelError("there are no prompts to measure queries on: give one or more")
    found = (sums.get(layer) for layer in range(n_layers))
    return [None if one is None else (np.array(one[0]) / count, np.array(one[1]) / count) for one in found]
