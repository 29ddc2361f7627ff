"""A model's forward pass over tokens of prompts, layer by layer, with whatever else between them.

Layered prefill (Lee et al. 2025, arXiv:2510.08055): beside decoding sequences a prompt gets a few layers a step, not a
few tokens, so that its products stay large and rows of KV are read for many tokens at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.caches.kv_only import KVOnlyCache

Stage = Callable[[mx.array], mx.array]
"""Takes ``[batch, n, width]`` through a layer."""


class LayerwiseModel:
    """Cuts forward passes of ``model``, whose caches hold the tokens afterwards, and whose logits nobody wants.

    Args:
        whole: do not cut.

    Attributes:
        depth: stages a pass has: one a layer, or one in all where the model works on what is between its layers.
    """

    def __init__(self, model: nn.Module, *, whole: bool = False) -> None:
        self._model = model
        self._calls: list[tuple[mx.array, Stage]] = []
        noted = [_Noted(layer, self._calls) for layer in model.layers]
        self._twin = None if whole else _with_layers(model, noted)
        self.depth = 1 if self._twin is None else len(model.layers)

    def begin(self, tokens: mx.array, caches: Sequence[Any]) -> tuple[mx.array, list[Stage]]:
        """What goes into the first stage, and the stages.

        Args:
            tokens: ``[batch, n]``.
            caches: one a layer, of a kind that :class:`kvlab.caches.kv_only.KVOnlyCache` takes.
        """
        caches = [*caches[:-1], KVOnlyCache(caches[-1])]
        if self._twin is None:
            return tokens, [lambda tokens: self._model(tokens, cache=caches)]
        try:
            self._twin(tokens, cache=caches)
            calls = list(self._calls)
        finally:
            self._calls.clear()  # they hold the caches, which nobody may need for longer than the pass
        first = calls[0][0]
        if len(calls) != self.depth or any(x is not first for x, _ in calls):
            raise ValueError("this model works on what is between its layers")
        return first, [stage for _, stage in calls]


class _Noted:
    """Stands for a layer: notes how it is called, and leaves its input as it is."""

    def __init__(self, layer: nn.Module, calls: list[tuple[mx.array, Stage]]) -> None:
        self._layer = layer
        self._calls = calls

    def __call__(self, x: mx.array, *args: Any, **options: Any) -> mx.array:
        self._calls.append((x, lambda x: self._layer(x, *args, **options)))
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)  # models ask a layer for its kind, too


def _with_layers(model: nn.Module, new: list[_Noted]) -> nn.Module | None:
    """The same model, arrays and all, with other layers; None where its own are not found."""
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
