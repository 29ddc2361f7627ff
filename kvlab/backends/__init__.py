"""The device under MLX: which attention, exponentials and threads are the fastest on it.

Nothing here imports MLX before it is asked for: an optimised BLAS must be loaded first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvlab.backends.base import Backend
    from kvlab.backends.choice import current

__all__ = ["Backend", "current"]

_HOMES = {"Backend": "kvlab.backends.base", "current": "kvlab.backends.choice"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the public names are {', '.join(__all__)}")
