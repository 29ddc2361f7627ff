"""float32 matrix products: MLX on its default device against NumPy."""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.bench.session import BenchSession, Clock
from kvlab.errors import RunError
from kvlab.models import ModelSource

SIZES = (512, 1024, 2048)


def run(
    *,
    model: str | ModelSource | None = None,
    seed: int = 0,
    seconds: float = 3.0,
    sizes: tuple[int, ...] = SIZES,
    clock: Clock = time.perf_counter,
) -> list[dict]:
    """Rows per size: ``gflops`` of both, the best of alternating runs, and their ``ratio``.

    ``seconds`` are shared by the sizes; ``model`` is not used. Raises RunError when the two disagree about the product.
    """
    rows: list[dict] = []
    with BenchSession("gemm", seconds, clock=clock) as session:
        for size in sizes:
            session.show(f"{size} x {size}")
            rows += compare(size, seed=seed, seconds=seconds / len(sizes), clock=clock)
    return rows


def compare(size: int, *, seed: int = 0, seconds: float = 1.0, clock: Clock = time.perf_counter) -> list[dict]:
    """The rows of one size. Raises RunError as :func:`run`."""
    rates = _rates(size, seed, seconds, clock)
    about = {"policy": "", "workload": "gemm", "size": size}
    ratio = {"metric": "ratio", "value": rates["mlx"] / rates["numpy"], "unit": "x", "of": "mlx", "to": "numpy"}
    return [
        *(
            {**about, "metric": "gflops", "value": rate, "unit": "GFLOP/s", "library": name}
            for name, rate in rates.items()
        ),
        {**about, **ratio},
    ]


def _rates(size: int, seed: int, seconds: float, clock: Clock) -> dict[str, float]:
    """Billions of float32 operations a second, for a product of two square matrices of ``size``."""
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    x, y = mx.array(a), mx.array(b)
    product: Any = x @ y
    mx.eval(product)
    if not np.allclose(np.array(product), a @ b, rtol=1e-3, atol=1e-3 * size**0.5):
        raise RunError(f"MLX and NumPy disagree about a {size} x {size} float32 product; the BLAS in use is broken")
    best = {"mlx": float("inf"), "numpy": float("inf")}
    stop = clock() + seconds
    while clock() < stop or best["numpy"] == float("inf"):
        start = clock()
        mx.eval(x @ y)
        mx.synchronize()
        middle = clock()
        a @ b
        end = clock()
        best = {"mlx": min(best["mlx"], middle - start), "numpy": min(best["numpy"], end - middle)}
    return {name: 2 * size**3 / shortest / 1e9 for name, shortest in best.items()}
