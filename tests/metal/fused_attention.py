"""Attention as Metal's kernels compute it, for CPUs, where MLX composes it from operations in the model's own dtype.

Metal's attention reads 16-bit rows, computes scores, weights and sums in float32, and rounds once, at the end. On a CPU
MLX rounds scores, weights and sums to 16 bits each, so that comparisons of logits would measure that instead.

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
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            mask = mask.astype(mx.float32)
        sinks = None if sinks is None else sinks.astype(mx.float32)
        return composed(q, k, v, scale=scale, mask=mask, sinks=sinks, **more).astype(plain.dtype)

    setattr(attention, MARK, True)
    return attention


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
