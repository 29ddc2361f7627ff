"""``SequentialModel``: computes sequences one by one, for models that mlx-lm cannot batch, such as Llama 4 or Jamba.

Such a model makes masks and positions for one sequence from the plain numbers of its caches, or reads padding as
tokens, so that it cannot use a batch of caches (:mod:`kvlab.caches.batching_trial` finds out). It can still use the
batched decoder: sequences join, leave, prefill and decode side by side, with one forward pass for each.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.caches.batch import BatchLayerCache


def keep_apart(caches: list[Any]) -> list[Any]:
    """Have each of these caches of one sequence merge into a :class:`BatchLayerCache`, which keeps it unchanged."""
    for cache in caches:
        # Set on the object, because mlx-lm does not recognise a subclass.
        cache.merge = BatchLayerCache
    return caches


class SequentialModel:
    """Calls a model once for each sequence. Its caches come from :func:`keep_apart`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = model.layers

    def __call__(self, inputs: mx.array, cache: list[BatchLayerCache]) -> mx.array:
        """Compute logits ``[batch, n, vocabulary]`` of right-padded ``inputs`` ``[batch, n]``: zeros for padding."""
        count = inputs.shape[1]
        reals = [layer.claim(count) for layer in cache][0]
        outs = [
            self.model(inputs[i : i + 1, :real], cache=[layer.sequences[i] for layer in cache]) if real else None
            for i, real in enumerate(reals)
        ]
        like = next(out for out in outs if out is not None)
        return mx.concatenate([_padded(out, like, count) for out in outs])


def _padded(out: mx.array | None, like: mx.array, count: int) -> mx.array:
    if out is None:
        return mx.zeros((1, count, like.shape[2]), like.dtype)
    missing = count - out.shape[1]
    return mx.pad(out, [(0, 0), (0, missing), (0, 0)]) if missing else out
