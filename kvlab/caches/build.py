"""From a policy and a model to layer caches."""

from __future__ import annotations

from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from kvlab.caches.attention import install
from kvlab.caches.layer import LayerCache
from kvlab.errors import ModelError
from kvlab.policies import Policy


def check_model(model: nn.Module, policy: Policy) -> None:
    """Raise ModelError where ``policy`` cannot be used with ``model``."""
    native = make_prompt_cache(model)
    unbatched = sorted({type(cache).__name__ for cache in native if not hasattr(cache, "merge")})
    if unbatched:
        raise ModelError(f"this model's {', '.join(unbatched)} cannot be batched by mlx-lm: no policy can serve it yet")
    if not policy.lossless and not any(_is_plain_kv(cache) for cache in native):
        raise ModelError(f"policy '{policy}' changes the KV cache, and this model has none: use full, paged or tiered")


def make_caches(
    model: nn.Module, policy: Policy | str = "full", *, prompt_tokens: int | None = None, record: bool = False
) -> list[Any]:
    """Empty layer caches for one sequence, one a layer, for any mlx-lm generator.

    A lossless policy gets mlx-lm's own caches. A lossy one gets a :class:`LayerCache` wherever the model would have a
    plain ``KVCache``, and the model's attention is hooked; sliding-window and recurrent layers stay as they are.

    Args:
        prompt_tokens: length of the prompt, where scorers compress; None: at the first single-token step.
        record: keep what each eviction drops, for the recorder.

    Raises:
        PolicyError: ``policy`` cannot be read.
    """
    policy = Policy.parse(policy)
    native = make_prompt_cache(model)
    if policy.lossless:
        return native
    install(model)

    def replace(cache: Any, layer: int) -> Any:
        if isinstance(cache, CacheList):
            return CacheList(*(replace(inner, layer) for inner in cache.caches))
        if type(cache) is not KVCache:
            return cache
        return LayerCache(policy, layer, len(native), prompt_tokens=prompt_tokens, record=record)

    return [replace(cache, layer) for layer, cache in enumerate(native)]


def _is_plain_kv(cache: Any) -> bool:
    return any(map(_is_plain_kv, cache.caches)) if isinstance(cache, CacheList) else type(cache) is KVCache
