"""The attention hook: a loaded mlx-lm model calls ``cache.attend`` where the layer cache has it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import base

FUNCTION_NAME = "scaled_dot_product_attention"
"""mlx-lm's attention function, which the hook replaces in the files of a model."""
HOOKED_ATTRIBUTE = "_kvlab_hooked"
"""Attribute that marks a hooked model."""


def install(model: nn.Module) -> None:
    """Make every attention module of ``model`` call ``cache.attend(queries, scale, mask, sinks)`` where it exists.

    mlx-lm's model files import ``scaled_dot_product_attention`` by name, so the name is replaced in the files that
    define this model's modules. Caches without ``attend`` get mlx-lm's own function, untouched. Idempotent.
    """
    if getattr(model, HOOKED_ATTRIBUTE, False):
        return
    object.__setattr__(model, HOOKED_ATTRIBUTE, True)
    for file in {type(module).__module__ for module in model.modules()}:
        namespace = sys.modules.get(file)
        plain = getattr(namespace, FUNCTION_NAME, None)
        if plain is base.scaled_dot_product_attention:
            setattr(namespace, FUNCTION_NAME, dispatch(plain))


def dispatch(plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return a function that calls ``cache.attend`` where it exists, and ``plain`` otherwise."""

    @functools.wraps(plain)
    def attention(
        queries: mx.array,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if hasattr(cache, "attend"):
            return cache.attend(queries, scale=scale, mask=mask, sinks=sinks)
        return plain(queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks)

    return attention
