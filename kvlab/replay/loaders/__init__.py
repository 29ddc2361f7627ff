"""Loaders of traces, by format.

Add one: a file with a ``TraceLoader`` subclass that has a ``name``. A subclass defined elsewhere, in a notebook for
instance, is known once it is defined.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from kvlab.replay.errors import TraceError
from kvlab.replay.loaders.base import TraceLoader
from kvlab.replay.loaders.source import TraceSource
from kvlab.replay.trace import BlockTrace

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def loaders() -> dict[str, TraceLoader]:
    """Return a loader for each format, by name."""
    return {kind.name: kind() for kind in TraceLoader.__subclasses__() if kind.name}


def load_trace(path: str | Path, format: str | None = None) -> BlockTrace:
    """Read a trace; without ``format`` its content tells which it is.

    Raises:
        TraceError: there is no such file or format, the content fits none or several, or a line is not as expected.
    """
    known, source = loaders(), TraceSource(Path(path).expanduser())
    if not source.path.exists():
        raise TraceError(f"{path}: no such file; give a trace file, an archive or a run folder")
    if format is not None:
        if format not in known:
            raise TraceError(f"there is no format {format!r}; use one of {', '.join(known)}")
        return known[format].load(source)
    fitting = [loader for loader in known.values() if loader.recognises(source)]
    if len(fitting) != 1:
        names = ", ".join(loader.name for loader in fitting or known.values())
        what = "fits several formats" if fitting else "fits no format that is known"
        raise TraceError(f"{path}: its content {what}; say which with --format, one of {names}")
    return fitting[0].load(source)


__all__ = ["TraceLoader", "TraceSource", "load_trace", "loaders"]
