"""``KVSamples``: keys, values and what errors in them weigh, measured on example prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.model_layers import model_layers
from kvlab.caches.observed_layers import observed_caches
from kvlab.errors import ModelError
from kvlab.policies.scorers.model_layer import ModelLayer, without_rope

PREFILL_STEP = 512
SINKS = 4
"""First tokens of a sequence, whose keys and values are unlike all others: they are stored as they are."""
DISTANCES = (0, *(1 << power for power in range(12)))
"""Distances between a query and a key over which the weight of an error in a key is averaged."""
RIDGE = 1e-4
"""Part of the mean weight that is added to each direction, so that none weighs nothing."""


@dataclass(frozen=True)
class LayerSamples:
    """Samples of one layer.

    Attributes:
        heads: KV heads.
        sides: keys before RoPE and values, float32 ``[tokens, n_kv_heads * head_dim]``.
        weights: of errors in each side, ``[n_kv_heads * head_dim, n_kv_heads * head_dim]``: of keys, the mean square of
            what they change in logits, at distances of 0 to 2,048 tokens; of values, of what they change behind the
            output projection, relative to the layer's values there.
    """

    heads: int
    sides: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class KVSamples:
    """Samples of all layers; None for layers without a plain KV cache."""

    layers: tuple[LayerSamples | None, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return next((len(one.sides[0]) for one in self.layers if one is not None), 0)

    @classmethod
    def of(cls, model: nn.Module, prompts: Iterable[Sequence[int]]) -> KVSamples:
        """Measure samples of a model on prompts. Raises ModelError where kvlab does not find the RoPE of a layer."""
        facts = model_layers(model)
        tallies: dict[int, _Tally] = {}

        def observe(cache: LayerCache, queries: mx.array, scale: float) -> None:
            tally = tallies.setdefault(cache.place.layer, _Tally(facts[cache.place.layer], cache.place.layer))
            tally.add(cache, queries, scale)

        for prompt in prompts:
            caches = observed_caches(model, observe)
            for start in range(0, len(prompt), PREFILL_STEP):
                mx.eval(model(mx.array([list(prompt[start : start + PREFILL_STEP])]), cache=caches))
        return cls(tuple(tallies[layer].result() if layer in tallies else None for layer in range(len(facts))))

    def save(self, path: str | Path) -> None:
        """Write the samples to a file."""
        arrays = {"layers": np.array(len(self.layers))}
        for layer, one in enumerate(self.layers):
            if one is not None:
                arrays |= {f"{layer}.heads": np.array(one.heads)}
                arrays |= {f"{layer}.side{side}": rows for side, rows in enumerate(one.sides)}
                arrays |= {f"{layer}.weight{side}": rows for side, rows in enumerate(one.weights)}
        with Path(path).open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> KVSamples:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            layers = [
                LayerSamples(
                    int(file[f"{layer}.heads"]),
                    (file[f"{layer}.side0"], file[f"{layer}.side1"]),
                    (file[f"{layer}.weight0"], file[f"{layer}.weight1"]),
                )
                if f"{layer}.heads" in file.files
                else None
                for layer in range(int(file["layers"]))
            ]
        return cls(tuple(layers))


class _Tally:
    """Collects the samples of one layer, chunk by chunk."""

    def __init__(self, fact: ModelLayer, layer: int) -> None:
        self._fact, self._layer = fact, layer
        self._rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._products: mx.array | None = None
        self._count = 0

    @property
    def _rope(self) -> Callable[..., mx.array]:
        if self._fact.rope is None:
            raise ModelError(f"kvlab finds no RoPE in layer {self._layer}, which the storage codec takes off keys")
        return self._fact.rope

    def add(self, cache: LayerCache, queries: mx.array, scale: float) -> None:
        _, heads, new, width = queries.shape
        keys, values = (side[:, :, -new:] for side in cache.rows.decode())
        kv_heads, first = keys.shape[1], min(max(0, SINKS - (cache.offset - new)), new)
        plain, plain_keys = (without_rope(self._rope, side, _newest(cache.offset, side)) for side in (queries, keys))
        grouped = plain[0].reshape(kv_heads, -1, width)
        now = scale * scale * (kv_heads / heads) * (mx.swapaxes(grouped, -1, -2) @ grouped)
        self._products = now if self._products is None else self._products + now
        self._count += new
        for rows, side in zip(self._rows, (plain_keys, values), strict=True):
            rows.append(by_token(side)[first:])
        mx.eval(self._products)

    def result(self) -> LayerSamples:
        if self._products is None:
            raise ModelError("no tokens were read: a sample needs the rows of a prompt")
        keys, values = (np.concatenate(side) for side in self._rows)
        heads = self._products.shape[0]
        weights = _of_keys(self._rope, self._products / self._count), _of_values(self._fact, values, heads)
        return LayerSamples(heads, (keys, values), weights)


def by_token(rows: mx.array) -> np.ndarray:
    """Return rows ``[1, n_kv_heads, n, head_dim]`` as float32 ``[n, n_kv_heads * head_dim]``."""
    _, heads, count, width = rows.shape
    return np.array(rows[0].astype(mx.float32)).transpose(1, 0, 2).reshape(count, heads * width)


def _newest(offset: int, rows: mx.array) -> mx.array:
    return mx.broadcast_to(mx.arange(offset - rows.shape[2], offset), rows.shape[:3])


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
    centred = values.astype(np.float64) - values.mean(axis=0)
    return found / np.mean((centred @ found) * centred)


def _block_diagonal(blocks: np.ndarray) -> np.ndarray:
    heads, width, _ = blocks.shape
    out = np.zeros((heads * width, heads * width))
    for head, block in enumerate(blocks.astype(np.float64)):
        ridge = RIDGE * np.trace(block) / width * np.eye(width)
        part = slice(head * width, (head + 1) * width)
        out[part, part] = (block + block.T) / 2 + ridge
    return out
