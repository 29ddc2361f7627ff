"""Make the layer caches of a policy for a model, and check that they fit it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from kvlab.backends import Backend, current
from kvlab.backends.base import BucketRule
from kvlab.caches.attention_hook import install
from kvlab.caches.batching_trial import Batching, differ, try_batch
from kvlab.caches.codecs import make_codec
from kvlab.caches.known_faults import NOT_IN_BATCHES, NOT_IN_CHUNKS, SHORT_WINDOWS, fault_of
from kvlab.caches.known_parts import check_parts
from kvlab.caches.layer_cache import LayerCache
from kvlab.caches.layerwise import LayerwiseModel
from kvlab.caches.model_layers import model_layers
from kvlab.caches.restore_trial import try_restore
from kvlab.caches.retention import LayerPlace
from kvlab.caches.sequential import keep_apart
from kvlab.errors import ModelError
from kvlab.policies import NoReuse, Policy, Rotating, Scorer
from kvlab.policies.scorers.model_layer import ModelLayer
from kvlab.policies.scorers.saved_scores import saved_scores_of

log = logging.getLogger("kvlab.caches")

TRIAL_TOKENS = (0, 1, 2)
"""Tokens of a trial of a policy: two in a prefill, and one in a step."""

BATCHING_ATTRIBUTE, REUSABLE_ATTRIBUTE = "_kvlab_batching", "_kvlab_why_not_reusable"
"""Attributes of a model that hold what its trials have found; the first by whether the caches were kvlab's own."""


def check_model(model: nn.Module, policy: Policy) -> None:
    """Raise ModelError where ``policy`` cannot be used with ``model``.

    A policy that changes the KV cache is tried on three tokens: models that compute attention in ways of their own
    (multi-head latent attention, layers that share keys) would give wrong answers or fail. One that reuses KV is tried
    by restoring a few tokens. Raises PolicyError for a module that nothing would carry out.
    """
    check_parts(policy)
    file = type(model).__module__.rpartition(".")[2]
    if fault := fault_of(model, NOT_IN_CHUNKS):
        raise ModelError(f"mlx-lm's {file} cannot be used, because {fault}: choose another model")
    if not isinstance(policy.reuse, NoReuse) and (fault := why_not_reusable(model)):
        raise ModelError(f"policy '{policy}' reuses KV, which cannot be done with {file}, because {fault}: use full")
    if policy.lossless:
        return
    if not any(_is_plain_kv(cache) for cache in native_caches(model)):
        raise ModelError(f"policy '{policy}' changes the KV cache, and this model has none: use full, paged or tiered")
    refusal = (
        f"policy '{policy}' cannot change this model's KV cache, because the model works on its keys and values "
        "outside mlx-lm's attention function (as multi-head latent attention does): use full, paged or tiered"
    )
    try:
        wanted, got = _first_logits(model, native_caches(model)), _first_logits(model, own_caches(model, Policy()))
    except Exception as error:  # noqa: BLE001 - a model's code may raise nearly everything for other caches
        raise ModelError(refusal) from error
    if differ(wanted, got):
        raise ModelError(refusal)
    if (scorer := saved_scores_of(policy.retention)) is not None:
        scorer.saved()  # of one prompt, and not of the trial's
        return
    _first_logits(model, own_caches(model, policy, token_ids=lambda: TRIAL_TOKENS))


def native_caches(model: nn.Module) -> list[Any]:
    """Make mlx-lm's own empty caches for one sequence, one a layer."""
    caches: list[Any] = make_prompt_cache(model)
    if fault_of(model, SHORT_WINDOWS):
        for cache in caches:
            if isinstance(cache, RotatingKVCache):
                cache.max_size += 1
    return caches


def can_share(model: nn.Module) -> bool:
    """Return whether every layer is a plain KV cache, which a :class:`LayerCache` replaces: then sequences can share.

    Sliding windows and recurrent state differ from sequence to sequence behind a prefix, and a model that works on
    keys and values by itself (multi-head latent attention) never lets the cache attend.
    """
    if any(type(cache) is not KVCache for cache in native_caches(model)):
        return False
    try:
        check_model(model, Policy(Rotating(window=1 << 30)))
    except ModelError:
        return False
    return bool(batching(model, own=True))


def batching(model: nn.Module, *, own: bool = False) -> Batching:
    """Return whether sequences are computed side by side: in mlx-lm's batched caches, or with ``own`` in kvlab's.

    A trial of a few tokens finds out, at the first call for a model; see :mod:`kvlab.caches.batching_trial`.
    """
    known: dict[bool, Batching] = getattr(model, BATCHING_ATTRIBUTE, {})
    if own not in known:
        fault = fault_of(model, NOT_IN_BATCHES)
        found = Batching(fault) if fault else try_batch(model, lambda: _plain_caches(model, own))
        log.log(logging.INFO if found else logging.WARNING, "%s computes sequences %s", type(model).__module__, found)
        known = {**known, own: found}
        object.__setattr__(model, BATCHING_ATTRIBUTE, known)
    return known[own]


def why_not_reusable(model: nn.Module) -> str:
    """Return why KV of ``model`` cannot be reused; empty where it can. A trial finds out, at the first call."""
    known: str | None = getattr(model, REUSABLE_ATTRIBUTE, None)
    if known is None:
        known = try_restore(model, functools.partial(_plain_caches, model, can_share(model)))
        object.__setattr__(model, REUSABLE_ATTRIBUTE, known)
    return known


def _plain_caches(model: nn.Module, own: bool) -> list[Any]:
    """Make caches that lose nothing: kvlab's ``own`` or mlx-lm's."""
    return own_caches(model, Policy()) if own else native_caches(model)


def make_caches(
    model: nn.Module,
    policy: Policy | str = "full",
    *,
    prompt_tokens: int | None = None,
    record: bool = False,
    token_ids: Callable[[], Sequence[int]] | None = None,
) -> list[Any]:
    """Make empty layer caches for one sequence, one a layer, for any mlx-lm generator.

    A lossless policy gets mlx-lm's own caches. A lossy one gets a :class:`LayerCache` wherever the model would have a
    plain ``KVCache``, and the model's attention is hooked; sliding-window and recurrent layers stay as they are.

    Args:
        prompt_tokens: length of the prompt, where scorers compress; None: at the first single-token step.
        record: keep what each eviction drops, for the recorder.
        token_ids: gives the sequence's tokens so far, for scorers that read them.

    Raises:
        PolicyError: ``policy`` cannot be read, or a part of it is a module that the live caches do not know.
    """
    policy = Policy.parse(policy)
    check_parts(policy)
    if policy.lossless:
        caches = native_caches(model)
    else:
        caches = own_caches(model, policy, prompt_tokens=prompt_tokens, record=record, token_ids=token_ids)
    return caches if batching(model, own=not policy.lossless) else keep_apart(caches)


def own_caches(
    model: nn.Module,
    policy: Policy,
    *,
    prompt_tokens: int | None = None,
    record: bool = False,
    token_ids: Callable[[], Sequence[int]] | None = None,
    backend: Backend | None = None,
    buckets: BucketRule | None = None,
) -> list[Any]:
    """Make layer caches with a :class:`LayerCache` for every plain ``KVCache``, even if ``policy`` is lossless."""
    install(model)
    native = native_caches(model)
    codec, backend = make_codec(policy.codec), backend or current()
    # The eviction at the end of the prompt loses rows that another request could start from.
    keeps_prompt = policy.tiers is not None and not policy.retention.is_lossless

    layers = model_layers(model) if isinstance(policy.retention, Scorer) else ()

    def replace(cache: Any, layer: int) -> Any:
        if isinstance(cache, CacheList):
            return CacheList(*(replace(inner, layer) for inner in cache.caches))
        if type(cache) is not KVCache:
            return cache
        found = layers[layer] if len(layers) == len(native) else ModelLayer()
        place = LayerPlace(layer, len(native), prompt_tokens, record, keeps_prompt, token_ids, found)
        own = codec.for_layer(layer, len(native))
        return LayerCache(policy, place, codec=own, backend=backend, buckets=buckets)

    return [replace(cache, layer) for layer, cache in enumerate(native)]


def layerwise_model(model: nn.Module) -> LayerwiseModel:
    """Make the layerwise form of ``model``, after a trial of three tokens; a model that fails it is not split.

    ``model`` is one for which :func:`can_share` is true.
    """
    wanted = _first_logits(model, own_caches(model, Policy()))
    layerwise = LayerwiseModel(model)
    try:
        got = _first_logits(model, own_caches(model, Policy()), layerwise)
    except Exception:  # noqa: BLE001 - a model's code may raise nearly everything for other layers
        return LayerwiseModel(model, whole=True)
    return LayerwiseModel(model, whole=differ(wanted, got))


def _first_logits(model: nn.Module, caches: list[Any], layerwise: LayerwiseModel | None = None) -> mx.array:
    """Compute logits after three tokens: two in a prefill, layer by layer where that is given, and one in a step."""
    *prompt, last = TRIAL_TOKENS
    if layerwise is None:
        model(mx.array([prompt]), cache=caches)
    else:
        x, calls = layerwise.begin(mx.array([prompt]), caches)
        for call in calls:
            x = call(x)
    logits = model(mx.array([[last]]), cache=caches)[0, -1].astype(mx.float32)
    mx.eval(logits)
    return logits


def _is_plain_kv(cache: Any) -> bool:
    return any(map(_is_plain_kv, cache.caches)) if isinstance(cache, CacheList) else type(cache) is KVCache
