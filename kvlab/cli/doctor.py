"""What kvlab runs on: the rows of ``kvlab doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import kvlab
from kvlab import models, paths
from kvlab.backends import device
from kvlab.backends.x86 import blas_library
from kvlab.bench import gemm
from kvlab.errors import ModelError

LIBRARIES = ("mlx", "mlx-lm", "transformers", "numpy", "polars", "zarr", "altair")


def examine(*, seconds: float = 0.5) -> list[dict[str, Any]]:
    """Tidy rows: versions, device, memory, BLAS, GEMM rates (``seconds`` long), bundled model and folders."""
    blas = blas_library.prepare()
    versions = {"kvlab": kvlab.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    store = paths.home() / "store"
    rows = [_row(f"version_{name}", version) for name, version in versions.items()]
    rows += [
        _row("platform", platform.platform()),
        _row("device", device.device_name()),
        _row("device_memory", device.memory().device, "bytes"),
        _row("blas", blas.name),
        _row("blas_path", blas.path),
        _row("blas_threads", blas.threads, "threads"),
    ]
    for found in gemm.run(sizes=(1024,), seconds=seconds):
        name = f"gemm_{found['library']}_gflops" if "library" in found else "gemm_ratio"
        more = {key: found[key] for key in ("of", "to") if key in found}
        rows.append(_row(name, found["value"], found["unit"], **more))
    try:
        path = models.bundled_path()
        rows += [_row("model", str(path)), _row("model_fingerprint", models.fingerprint(path))]
    except ModelError as error:
        rows.append(_row("model", f"missing: {error}"))
    rows += [
        _row("home", str(paths.home())),
        _row("store", str(store)),
        _row("store_bytes", folder_bytes(store), "bytes"),
        _row("executable", sys.executable),
    ]
    return rows


def folder_bytes(folder: Path) -> int:
    """Bytes of the files under a folder; 0 where there is none. Files that go while it counts are left out."""
    total = 0
    for where, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(where, file)).st_size
            except OSError:
                continue
    return total


def _row(metric: str, value: str | float, unit: str = "", **more: Any) -> dict[str, Any]:
    return {"policy": "", "workload": "doctor", "metric": metric, "value": value, "unit": unit, **more}
