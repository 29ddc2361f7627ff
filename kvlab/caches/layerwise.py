"""``LayerwiseModel``: runs the forward pass of a prefill layer by layer, so that other work can be done in between.

Layered prefill (Lee et al. 2025, arXiv:2510.08055): beside decoding sequences, each step computes a few layers for many
tokens of a prompt, not all layers for a few tokens. Matrix products stay large, and rows of KV are read for many tokens
at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.caches.kv_only import KVOnlyCache

LayerCall = Callable[[mx.array], mx.array]
"""Computes one layer: from hidden states ``[batch, n, width]`` to those of the next layer."""


class LayerwiseModel:
    """Splits forward passes of ``model`` into calls of its layers. They fill the caches; logits are not computed.

    Args:
        whole: do not split: a pass is one call of the whole model.

    Attributes:
        depth: number of calls in a pass: one a layer, or 1 where the model changes hidden states between its layers.
    """

    def __init__(self, model: nn.Module, *, whole: bool = False) -> None:
        self._model = model
        self._calls: list[tuple[mx.array, LayerCall]] = []
        recorded = [_RecordedLayer(layer, self._calls) for layer in model.layers]
        self._twin = None if whole else _with_layers(model, recorded)
        self.depth = 1 if self._twin is None else len(model.layers)

    def begin(self, tokens: mx.array, caches: Sequence[Any]) -> tuple[mx.array, list[LayerCall]]:
        """Return the input of the first layer ``[batch, n, width]`` (tokens where ``depth`` is 1), and the layer calls.

        Args:
            tokens: ``[batch, n]``.
            caches: one a layer, of a kind that :class:`kvlab.caches.kv_only.KVOnlyCache` takes.

        Raises:
            ValueError: the model changes hidden states between its layers, so that it cannot be split.
        """
        caches = [*caches[:-1], KVOnlyCache(caches[-1])]
        if self._twin is None:
            return tokens, [lambda tokens: self._model(tokens, cache=caches)]
        try:
            self._twin(tokens, cache=caches)
            calls = list(self._calls)
        finally:
            self._calls.clear()  # calls hold the caches, which must not outlive the pass
        first = calls[0][0]
        if len(calls) != self.depth or any(x is not first for x, _ in calls):
            raise ValueError("this model changes hidden states between its layers")
        return first, [call for _, call in calls]


class _RecordedLayer:
    """Takes the place of a layer: records how it is called, and returns its input unchanged."""

    def __init__(self, layer: nn.Module, calls: list[tuple[mx.array, LayerCall]]) -> None:
        self._layer = layer
        self._calls = calls

    def __call__(self, x: mx.array, *args: Any, **options: Any) -> mx.array:
        self._calls.append((x, lambda x: self._layer(x, *args, **options)))
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)  # models read attributes of a layer, such as its kind


def _with_layers(model: nn.Module, new: list[_RecordedLayer]) -> nn.Module | None:
    """Return a shallow copy of the model with other layers; None where its own are not found."""
    layers = model.layers

    def replaced(module: nn.Module) -> nn.Module | None:
        for name, child in module.items():
            other: Any = None
            if isinstance(child, list) and len(child) == len(layers) and child[0] is layers[0]:
                other = new
            elif isinstance(child, nn.Module):
                other = replaced(child)
            if other is not None:
                twin = copy.copy(module)
                twin[name] = other
                return twin
        return None

    return replaced(model)
