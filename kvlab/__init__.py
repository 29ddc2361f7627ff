"""kvlab: a laboratory for KV caching on MLX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kvlab.backends.open_files import keep_limits
from kvlab.backends.x86.blas_library import prepare
from kvlab.version import __version__ as __version__

prepare()  # before MLX is imported: see kvlab/backends/x86/blas_library.py
keep_limits()  # before mlx-lm is imported, which changes them

if TYPE_CHECKING:
    from kvlab.advising.decision import advise
    from kvlab.decoder import Completion, Decoder
    from kvlab.errors import KvlabError
    from kvlab.experiments.run import Run, compare, run
    from kvlab.inspection import watch
    from kvlab.models import LoadedModel, load
    from kvlab.policies import Policy, ScoreContext, Scorer, registry
    from kvlab.recording.recorder import Recorder
    from kvlab.results import Results
    from kvlab.server import serve
    from kvlab.systems import System

_HOMES = {
    "kvlab.advising": ("advise",),
    "kvlab.decoder": ("Completion", "Decoder"),
    "kvlab.errors": ("KvlabError",),
    "kvlab.experiments": ("Run", "compare", "run"),
    "kvlab.models": ("LoadedModel", "load"),
    "kvlab.policies": ("Policy", "ScoreContext", "Scorer", "registry"),
    "kvlab.recording.recorder": ("Recorder",),
    "kvlab.results": ("Results",),
    "kvlab.server": ("serve",),
    "kvlab.systems": ("System",),
    "kvlab.inspection": ("watch",),
}

__all__ = [
    "Completion", "Decoder", "KvlabError", "LoadedModel", "Policy", "Recorder", "Results", "Run", "ScoreContext",
    "Scorer", "System", "advise", "compare", "load", "registry", "run", "serve", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public names are imported when they are first asked for, so that ``import kvlab`` stays quick."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'kvlab' has no attribute {name!r}; the public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
