"""Benchmarks: each module measures one thing side by side, alternating, in one process.

A module has ``run(*, model, seed, seconds, clock) -> list[dict]``: tidy rows, ``ratio`` rows (with ``of`` and ``to``)
among them, and a ``skipped`` row for whatever it left out to end within ``seconds``, the model's context and memory
(:mod:`kvlab.bench.session`, which also shows the progress). Its name is what ``kvlab bench NAME`` takes.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from kvlab.errors import RunError

Rows = list[dict[str, Any]]
HELPERS = ("models", "request_times", "session", "speed")
"""Modules here that are no benchmarks."""


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in HELPERS)


def get(name: str) -> Callable[..., Rows]:
    """The ``run`` function of a benchmark. Raises RunError naming those that exist."""
    if name not in names():
        raise RunError(f"no benchmark {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}").run
