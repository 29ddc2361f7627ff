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
from kvlab.backends import current, device
from kvlab.backends.x86 import blas_library
from kvlab.bench import gemm
from kvlab.errors import ModelError
from kvlab.models import ModelSource

LIBRARIES = ("mlx", "mlx-lm", "transformers", "numpy", "polars", "zarr", "altair")


def examine(model: str | ModelSource | None = None, *, seconds: float = 0.5) -> list[dict[str, Any]]:
    """Tidy rows: versions, device, memory, BLAS, GEMM rates (``seconds`` long), ``model`` or the bundled one, folders.

    Raises ModelError for a ``model`` that cannot be loaded; the bundled one is then said to be missing.
    """
    # Read first: a wrong name should not wait for the measurements.
    about_model = _model(model)
    blas = blas_library.prepare()
    versions = {"kvlab": kvlab.__version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in LIBRARIES}
    store = paths.home() / "store"
    rows = [_row(f"version_{name}", version) for name, version in versions.items()]
    rows += [
        _row("platform", platform.platform()),
        _row("device", device.device_name()),
        _row("backend", current().name),
        _row("device_memory", device.memory().device, "bytes"),
        _row("available_memory", device.available_bytes(), "bytes"),
        _row("blas", blas.name),
        _row("blas_path", blas.path),
        _row("blas_threads", blas.threads, "threads"),
    ]
    for found in gemm.compare(1024, seconds=seconds):
        name = f"gemm_{found['library']}_gflops" if "library" in found else "gemm_ratio"
        more = {key: found[key] for key in ("of", "to") if key in found}
        rows.append(_row(name, found["value"], found["unit"], **more))
    rows += about_model
    rows += [
        _row("home", str(paths.home())),
        _row("store", str(store)),
        _row("store_bytes", folder_bytes(store), "bytes"),
        _row("executable", sys.executable),
    ]
    return rows


def _model(model: str | ModelSource | None) -> list[dict[str, Any]]:
    """Where the model is, its fingerprint as loading gives it, and whether its quantized weights would be expanded."""
    try:
        report = models.report_weights(model)
    except ModelError as error:
        if model is not None:
            raise
        return [_row("model", f"missing: {error}")]
    rows = [_row("model", str(report.path)), _row("model_fingerprint", _fingerprint(model, report))]
    rows.append(_row("dequantize", str(report)))
    if report.plan is not None:
        rows.append(_row("dequantize_needed", report.plan.needed, "bytes"))
    return rows


def _fingerprint(model: str | ModelSource | None, report: models.WeightsReport) -> str:
    """The fingerprint of the model in memory, or why it was not loaded."""
    needed = models.weight_bytes(model)
    if report.dequantizes and report.plan is not None:
        needed = max(needed, report.plan.needed)
    if needed > device.available_bytes():
        return f"not computed: loading takes {needed / 1e9:.2f} GB, more than is available"
    return models.load(model).fingerprint


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
