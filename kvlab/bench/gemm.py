"""float32 matrix products: MLX on its default device against NumPy."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.errors import RunError

SIZES = (512, 1024, 2048)


def run(*, model: str | None = None, seed: int = 0, sizes: tuple[int, ...] = SIZES, seconds: float = 1.0) -> list[dict]:
    """Rows per size: ``gflops`` of both, the best of alternating runs over ``seconds``, and their ``ratio``.

    ``model`` is not used. Raises RunError when the two disagree about the product.
    """
    rows: list[dict] = []
    for size in sizes:
        rates = _rates(size, seed, seconds)
        about = {"policy": "", "workload": "gemm", "size": size}
        rows += [
            {**about, "metric": "gflops", "value": rate, "unit": "GFLOP/s", "library": name}
            for name, rate in rates.items()
        ]
        ratio = {"metric": "ratio", "value": rates["mlx"] / rates["numpy"], "unit": "x", "of": "mlx", "to": "numpy"}
        rows.append({**about, **ratio})
    return rows


def _rates(size: int, seed: int, seconds: float) -> dict[str, float]:
    """Billions of float32 operations a second, for a product of two square matrices of ``size``."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    x, y = mx.array(a), mx.array(b)
    product: Any = x @ y
    mx.eval(product)
    if not np.allclose(np.array(product), a @ b, rtol=1e-3, atol=1e-3 * size**0.5):
        raise RunError(f"MLX and NumPy disagree about a {size} x {size} float32 product; the BLAS in use is broken")
    best = {"mlx": float("inf"), "numpy": float("inf")}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or best["numpy"] == float("inf"):
        start = time.perf_counter()
        mx.eval(x @ y)
        mx.synchronize()
        middle = time.perf_counter()
        a @ b
        end = time.perf_counter()
        best = {"mlx": min(best["mlx"], middle - start), "numpy": min(best["numpy"], end - middle)}
    return {name: 2 * size**3 / shortest / 1e9 for name, shortest in best.items()}
