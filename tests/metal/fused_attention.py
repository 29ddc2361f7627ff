"""Attention as Metal's kernels compute it, for CPUs, where MLX composes it from operations in the model's own dtype.

Metal's attention reads 16-bit rows, computes scores, weights and sums in float32, and rounds once, at the end. On a CPU
MLX rounds scores, weights and sums to 16 bits each, so that comparisons of logits would measure that instead. Sums run
in the order of Metal's kernels: what a prompt gets does not depend on how it is cut, or padded, and a step of one
sequence sums in another order than a step of a batch.

Nothing here imports MLX or kvlab at import time: sitecustomize reads this file when a process starts.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

MARK = "_is_fused"
FEW_QUERIES = 8
"""Queries up to which Metal shares out keys, not queries."""
BLOCK = 32
"""Queries at a time where there are more."""
LANES = 32
"""Groups of threads that keys are shared out to."""
LEAST = -1e30


def fused(composed: Callable[..., Any]) -> Callable[..., Any]:
    """``mx.fast.scaled_dot_product_attention`` that computes in float32; ``composed`` is MLX's own.

    Takes the same arguments, and refuses what MLX refuses. float32 comes out as before.
    """
    import mlx.core as mx

    @functools.wraps(composed)
    def attention(q: Any, k: Any, v: Any, *, scale: float, mask: Any = None, sinks: Any = None, **more: Any) -> Any:
        plain = composed(q, k, v, scale=scale, mask=mask, sinks=sinks, **more)  # never evaluated in 16 bits
        if plain.dtype == mx.float32:
            return plain
        q, k, v = (array.astype(mx.float32) for array in (q, k, v))
        scores = _scores(q * scale, k, mask)
        sinks = None if sinks is None else sinks.astype(mx.float32).reshape(1, k.shape[1], -1, 1, 1)
        out = (_decode if q.shape[2] <= FEW_QUERIES else _prefill)(scores, v, sinks)
        return out.reshape(*q.shape[:3], v.shape[3]).astype(plain.dtype)

    setattr(attention, MARK, True)
    return attention


def _scores(q: Any, k: Any, mask: Any) -> Any:
    """``[batch, n_kv_heads, group, n, length]``, -inf where ``mask`` hides; a row depends on no other row."""
    import mlx.core as mx

    batch, heads, count, dim = q.shape
    kv_heads, length = k.shape[1:3]
    group = heads // kv_heads
    blocks = -(-count // BLOCK)
    padded = mx.pad(q, [(0, 0), (0, 0), (0, blocks * BLOCK - count), (0, 0)])
    scores = padded.reshape(batch, kv_heads, group, blocks, BLOCK, dim) @ mx.swapaxes(k, 2, 3)[:, :, None, None]
    scores = scores.reshape(batch, kv_heads, group, blocks * BLOCK, length)[:, :, :, :count]
    if mask is None:
        return scores
    if isinstance(mask, str):
        mask = mx.arange(length - count, length)[:, None] >= mx.arange(length)
    mask = mx.broadcast_to(mask, (batch, heads, count, length)).reshape(scores.shape)
    return mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask.astype(mx.float32)


def _prefill(scores: Any, v: Any, sinks: Any) -> Any:
    """Queries in blocks, keys one after the other: rows that are hidden behind the others change nothing."""
    import mlx.core as mx

    top = _largest(scores, sinks)
    weights = mx.exp(scores - top)
    missing = -weights.shape[3] % BLOCK
    blocks = mx.pad(weights, [(0, 0)] * 3 + [(0, missing), (0, 0)])
    blocks = blocks.reshape(*weights.shape[:3], -1, BLOCK, weights.shape[4])
    out = (blocks @ v[:, :, None, None]).reshape(*weights.shape[:3], -1, v.shape[3])[:, :, :, : weights.shape[3]]
    total = mx.cumsum(weights, axis=-1)[..., -1:]
    return out / (total if sinks is None else total + mx.exp(sinks - top))


def _decode(scores: Any, v: Any, sinks: Any) -> Any:
    """Each of LANES takes a part of the keys, and the parts are put together.

    A sequence alone gives every LANES-th key to a lane, a batch runs of keys: kernels of GPUs differ with the shape of
    their work, and with them the order of their sums.
    """
    import mlx.core as mx

    missing = -v.shape[2] % LANES
    scores = mx.pad(scores, [(0, 0)] * 4 + [(0, missing)], constant_values=-float("inf"))
    v = mx.pad(v, [(0, 0), (0, 0), (0, missing), (0, 0)])
    if len(v) == 1:
        scores = scores.reshape(*scores.shape[:4], -1, LANES).swapaxes(4, 5)
        v = v.reshape(*v.shape[:2], -1, LANES, v.shape[3]).swapaxes(2, 3)
    else:
        scores = scores.reshape(*scores.shape[:4], LANES, -1)
        v = v.reshape(*v.shape[:2], LANES, -1, v.shape[3])
    scores = scores.swapaxes(3, 4)  # [batch, n_kv_heads, group, LANES, n, keys of a lane]
    top = _largest(scores, None)
    weights = mx.exp(scores - top)
    parts, totals = weights @ v[:, :, None], weights.sum(axis=-1, keepdims=True)
    best = top.max(axis=3, keepdims=True)
    best = best if sinks is None else mx.maximum(best, sinks[:, :, :, None])
    shrink = mx.exp(top - best)
    total = (totals * shrink).sum(axis=3)
    total = total if sinks is None else total + mx.exp(sinks - best[:, :, :, 0])
    return (parts * shrink).sum(axis=3) / total


def _largest(scores: Any, sinks: Any) -> Any:
    """The largest score of each row, and a finite number where all are hidden."""
    import mlx.core as mx

    top = mx.maximum(scores.max(axis=-1, keepdims=True), LEAST)
    return top if sinks is None else mx.maximum(top, sinks)


def install() -> None:
    """Put :func:`fused` in place of MLX's attention in this process. Idempotent."""
    import mlx.core as mx

    if not is_installed():
        mx.fast.scaled_dot_product_attention = fused(mx.fast.scaled_dot_product_attention)


def is_installed() -> bool:
    """True when MLX's attention is the fused one in this process."""
    import mlx.core as mx

    return hasattr(mx.fast.scaled_dot_product_attention, MARK)


def install_on_import() -> None:
    """Call :func:`install` once something imports ``mlx.core``: a library of BLAS must be loaded before that."""
    if "mlx.core" in sys.modules:
        install()
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds ``mlx.core`` where it is, and installs once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "mlx.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        spec.loader = self._loader  # so that the module looks as ever
        module: ModuleType | None = self._loader.create_module(spec)
        spec.loader = self
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        install()
