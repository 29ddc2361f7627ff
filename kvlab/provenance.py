"""Where a number comes from: the versions, device, model and seed that every result carries, and the JSON document."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import subprocess
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvlab.backends import device
from kvlab.backends.x86 import blas_library
from kvlab.importing import user_files
from kvlab.paths import PACKAGE
from kvlab.version import __version__

if TYPE_CHECKING:
    from kvlab.models import LoadedModel


def provenance(model: LoadedModel | None = None, *, seed: int | None = None, **more: Any) -> dict[str, Any]:
    """The facts a result needs to be reproduced. ``more`` is added as it is; JSON-ready values only."""
    facts: dict[str, Any] = {
        "kvlab": __version__,
        "commit": commit(),
        "mlx": _version("mlx"),
        "mlx_lm": _version("mlx-lm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.device_name(),
        "blas": blas_library.prepare().name,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if model is not None:
        facts |= {"model": model.name, "model_fingerprint": model.fingerprint, "dtype": model.dtype}
        facts |= {"adapter": str(model.adapter)} if model.adapter else {}
    if seed is not None:
        facts["seed"] = seed
    if imported := user_files():
        facts["imports"] = [{"file": file.path, "sha256": file.sha256} for file in imported]
    return facts | more


def document(command: str, rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The one JSON document that a measuring command prints with ``--json``. A NaN or infinity becomes null."""
    return {
        "kvlab": __version__,
        "command": command,
        "provenance": dict(provenance() if facts is None else facts),
        "rows": [{key: _json_value(value) for key, value in row.items()} for row in rows],
    }


@cache
def commit() -> str:
    """The source tree's commit, with ``+dirty`` where tracked files differ from it; empty for an installed wheel."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return ""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=20)
    return done.stdout.strip()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _json_value(value: Any) -> Any:
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
