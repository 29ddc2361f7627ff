"""Find the retention that carries out a policy's module."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

from kvlab.caches.retention.base import LayerPlace, Retention
from kvlab.errors import PolicyError
from kvlab.policies import Module


def make_retention(module: Module, place: LayerPlace) -> Retention:
    """Make the retention that carries out a policy's module. Raises PolicyError where there is none for it."""
    _read_folder()
    pending, known = list(Retention.__subclasses__()), []
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if "module" in cls.__dict__:
            known.append(cls)
    for cls in reversed(known):
        if isinstance(module, cls.module):
            return cls(module, place)
    raise PolicyError(
        f"'{module.name}' is a retention that the live caches do not know: derive {type(module).__name__} from "
        "kvlab.Scorer, or define a subclass of kvlab.caches.retention.Retention for it"
    )


@functools.cache
def _read_folder() -> None:
    """Import all files of this folder: a retention is known once its class is defined."""
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{file.name}")
