"""Measure a model's transform of keys and values on example prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.model_layers import model_layers
from kvlab.caches.observed_layers import observed_caches
from kvlab.caches.storage_codec.transform import KVTransform, SideTransform
from kvlab.errors import ModelError
from kvlab.policies.scorers.model_layer import ModelLayer, without_rope

PREFILL_STEP = 512
SINKS = 4
"""First tokens of a sequence, whose keys and values are unlike all others: they are stored as they are."""
DISTANCES = (0, *(1 << power for power in range(12)))
"""Distances between a query and a key over which the weight of an error in a key is averaged."""
RIDGE = 1e-4
"""Part of the mean weight that is added to each direction, so that none weighs nothing."""
QUANTILES = 4097
FEWEST_TOKENS = 512
"""Fewest tokens of the prompts together: fewer do not tell the components of a layer apart."""


def calibrated(model: nn.Module, prompts: Iterable[Sequence[int]]) -> KVTransform:
    """Return the transform of a model, measured on the keys, values and queries of prompts.

    Errors in a key count by what they change in attention logits, under the queries of the prompts at distances of 0 to
    2,048 tokens. Errors in a value count by what they change behind the output projection, relative to the size of the
    layer's values there.

    Raises:
        ModelError: too few tokens, a model without a plain KV cache, or one whose RoPE kvlab does not find.
    """
    facts = model_layers(model)
    rows: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    products: dict[int, mx.array] = {}

    def observe(cache: LayerCache, queries: mx.array, scale: float) -> None:
        layer = cache.place.layer
        _, heads, new, width = queries.shape
        keys, values = (side[:, :, -new:] for side in cache.rows.decode())
        first = min(max(0, SINKS - (cache.offset - new)), new)
        plain, plain_keys = (
            without_rope(_rope(facts[layer], layer), side, _positions(cache.offset, side)) for side in (queries, keys)
        )
        grouped = plain[0].reshape(keys.shape[1], -1, width)
        now = scale * scale * (mx.swapaxes(grouped, -1, -2) @ grouped) * (keys.shape[1] / heads)
        products[layer] = products.get(layer, mx.zeros_like(now)) + now
        each = rows.setdefault(layer, ([], []))
        each[0].append(by_token(plain_keys)[first:])
        each[1].append(by_token(values)[first:])
        mx.eval(products[layer])

    count = 0
    for prompt in prompts:
        caches = observed_caches(model, observe)
        for start in range(0, len(prompt), PREFILL_STEP):
            mx.eval(model(mx.array([list(prompt[start : start + PREFILL_STEP])]), cache=caches))
        count += len(prompt)
    if count < FEWEST_TOKENS:
        raise ModelError(f"{count} tokens are too few to measure a transform: give prompts of {FEWEST_TOKENS} or more")
    if not rows:
        raise ModelError("this model has no plain KV cache to transform")
    sides: list[tuple[SideTransform, SideTransform] | None] = []
    shapes = []
    for layer, fact in enumerate(facts):
        if layer not in rows:
            sides.append(None)
            continue
        keys, values = (np.concatenate(side).astype(np.float64) for side in rows[layer])
        rope = _rope(fact, layer)
        weights = (_of_keys(rope, products[layer] / count), _of_values(fact, values, products[layer].shape[0]))
        k, v = (SideTransform.of(side, weight) for side, weight in zip((keys, values), weights, strict=True))
        sides.append((k, v))
        shapes += [_standardized(keys, k), _standardized(values, v)]
    quantiles = np.quantile(np.concatenate(shapes), np.linspace(0, 1, QUANTILES))
    heads = tuple(len(products[layer]) if layer in products else 0 for layer in range(len(facts)))
    return KVTransform(tuple(sides), heads, quantiles.astype(np.float32))


def by_token(rows: mx.array) -> np.ndarray:
    """Return rows ``[1, n_kv_heads, n, head_dim]`` as float32 ``[n, n_kv_heads * head_dim]``."""
    return np.array(rows[0].astype(mx.float32)).transpose(1, 0, 2).reshape(rows.shape[2], -1)


def _rope(fact: ModelLayer, layer: int) -> Callable[..., mx.array]:
    if fact.rope is None:
        raise ModelError(f"kvlab finds no RoPE in layer {layer} of this model, which the storage codec takes off keys")
    return fact.rope


def _positions(offset: int, rows: mx.array) -> mx.array:
    _, heads, count, _ = rows.shape
    return mx.broadcast_to(mx.arange(offset - count, offset), (1, heads, count))


def _of_keys(rope: Callable[..., mx.array], products: mx.array) -> np.ndarray:
    """Return the weight of errors in keys before RoPE, from queries' products ``[n_kv_heads, head_dim, head_dim]``."""
    turned = mx.zeros_like(products)
    for distance in DISTANCES:
        half = rope(products[:, :, None], offset=distance)[:, :, 0]
        turned = turned + rope(mx.swapaxes(half, -1, -2)[:, :, None], offset=distance)[:, :, 0] / len(DISTANCES)
    return _block_diagonal(np.array(turned))


def _of_values(fact: ModelLayer, values: np.ndarray, kv_heads: int) -> np.ndarray:
    """Return the weight of errors in values ``[tokens, width]``: 1 is the mean weight of the values themselves."""
    width = values.shape[1] // kv_heads
    if fact.output_weight is None or (weight := fact.output_weight()).shape[0] % (kv_heads * width):
        found = np.eye(kv_heads * width)
    else:
        outputs = weight.astype(mx.float32).reshape(kv_heads, -1, width, weight.shape[1])
        found = _block_diagonal(np.array((outputs @ mx.swapaxes(outputs, -1, -2)).mean(axis=1)))
    centred = values - values.mean(axis=0)
    return found / np.mean((centred @ found) * centred)


def _block_diagonal(blocks: np.ndarray) -> np.ndarray:
    heads, width, _ = blocks.shape
    out = np.zeros((heads * width, heads * width))
    for head, block in enumerate(blocks.astype(np.float64)):
        ridge = RIDGE * np.trace(block) / width * np.eye(width)
        part = slice(head * width, (head + 1) * width)
        out[part, part] = (block + block.T) / 2 + ridge
    return out


def _standardized(rows: np.ndarray, side: SideTransform) -> np.ndarray:
    """Return the coefficients of the larger half of the components, divided by their deviations."""
    half = len(side.deviation) // 2
    return (((rows - side.mean) @ side.forward[:, :half]) / np.maximum(side.deviation[:half], 1e-12)).ravel()
