"""``ContextShift``: drops rows of a live sequence in the middle, and moves later ones to earlier positions.

RoPE rotates the key at position p by an angle that is proportional to p, so that rotating it by -d more gives the key
at p - d. Values have no positions. This is what llama.cpp does (``build_rope_shift``); keys and values of deeper layers
go on to hold what they took from the dropped tokens while those were there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from kvlab.caches.factory import own_caches
from kvlab.caches.kv_buffer import KVBuffer
from kvlab.caches.layer_cache import LayerCache
from kvlab.errors import ModelError
from kvlab.policies import Policy

Rope = Callable[..., mx.array]

MAX_ROPE_ERROR = 0.02
"""Largest difference of two rotations that count as one, as a part of the largest key: 16 bits round them."""


class ContextShift:
    """Shifts sequences of one model, after a trial that shows that its keys can be rotated to other positions.

    Args:
        context: largest position that is shifted from.

    Raises:
        ModelError: the model has no RoPE that this finds, or rotations of it do not add up (YaRN with a scale of its
            own, dynamic scaling beyond the trained length).
    """

    def __init__(self, model: nn.Module, context: int) -> None:
        self._ropes = [_rope_of(layer) for layer in model.layers]
        width = _first_keys(model, [1]).shape[-1]
        if not all(_adds_up(rope, width, context) for rope in self._ropes):
            raise _refusal("rotations of its RoPE do not add up")
        if not self._moves_keys(model):
            raise _refusal("its keys depend on positions otherwise than by RoPE")

    def shift(self, layers: Sequence[LayerCache], keep: int, discard: int) -> None:
        """Drop ``discard`` rows behind the first ``keep`` in every layer; the later ones move down by as many."""
        for layer, rope in zip(layers, self._ropes, strict=True):
            layer.leave_bucket()
            rows = layer.all_rows()
            later = {name: array[:, :, keep + discard :] for name, array in rows.items()}
            keys, values = layer.codec.decode(later)
            moved = layer.codec.encode(rotated(rope, keys, -discard), values)
            later = {name: moved[name] if name.startswith("k") else array for name, array in later.items()}
            kept = {name: mx.concatenate([rows[name][:, :, :keep], array], axis=2) for name, array in later.items()}
            layer.set_prefixes(())
            layer.rows = KVBuffer(layer.codec, kept)
            layer.offset -= discard

    def _moves_keys(self, model: nn.Module) -> bool:
        """Return whether the first layer's keys of tokens at positions 1 and 2, moved, are those at 0 and 1."""
        far, near = _first_keys(model, [1, 2, 3]), _first_keys(model, [2, 3])
        return _are_equal(rotated(self._ropes[0], far[:, :, 1:], -1), near)


def rotated(rope: Rope, keys: mx.array, by: int) -> mx.array:
    """Rotate keys ``[1, n_kv_heads, n, head_dim]`` to positions that are ``by`` further; computed in float32."""
    batch, heads, count, width = keys.shape
    flat = keys.astype(mx.float32).reshape(batch * heads * count, 1, 1, width)
    return rope(flat, offset=by).reshape(keys.shape).astype(keys.dtype)


def check_layers(layers: Sequence[Any], policy: Policy) -> None:
    """Raise ModelError where rows of these caches of one sequence cannot be moved."""
    whole = all(
        isinstance(layer, LayerCache) and layer.retention.keeps_all and not layer.encodes_groups for layer in layers
    )
    if not whole:
        raise _refusal(f"under '{policy}' some of its layers do not hold a row for every token")


def _rope_of(layer: nn.Module) -> Rope:
    """Return the RoPE of a layer's attention. Raises ModelError unless there is exactly one."""
    found = [module["rope"] for _, module in layer.named_modules() if "rope" in module]
    if len(found) != 1:
        raise _refusal(f"kvlab finds {len(found)} RoPE modules in a layer of it")
    rope: Rope = found[0]
    return rope


def _adds_up(rope: Rope, width: int, context: int) -> bool:
    """Return whether rotating to a far position and back is rotating to a near one."""
    x = mx.random.normal((1, 1, 1, width), key=mx.random.key(0))
    far, back = max(2, context - 1), max(1, context // 2)
    return all(
        _are_equal(rope(rope(x, offset=start), offset=-step), rope(x, offset=start - step))
        for start, step in ((far, back), (7, 3))
    )


def _first_keys(model: nn.Module, tokens: Sequence[int]) -> mx.array:
    caches = own_caches(model, Policy())
    model(mx.array([list(tokens)]), cache=caches)
    keys: mx.array = caches[0].rows.decode()[0]
    return keys


def _are_equal(a: mx.array, b: mx.array) -> bool:
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return bool(mx.all(mx.abs(a - b) <= MAX_ROPE_ERROR * mx.max(mx.abs(b))).item())


def _refusal(why: str) -> ModelError:
    return ModelError(f"overflow=shift cannot be used with this model, because {why}: write overflow=stop")
