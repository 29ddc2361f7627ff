"""Find the codec that carries out a policy's codec module."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from pathlib import Path

from kvlab.caches.codecs.base import Codec
from kvlab.errors import PolicyError
from kvlab.policies import Module


def known_codecs() -> dict[type[Module], type[Codec]]:
    """Return all codecs that are defined, by their policy modules."""
    _read_folder()
    found: dict[type[Module], type[Codec]] = {}
    pending = list(Codec.__subclasses__())
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if "module" in cls.__dict__:
            found[cls.module] = cls
    return found


def make_codec(module: Module) -> Codec:
    """Make the codec of a policy's module. Raises PolicyError where there is none for it."""
    known = known_codecs()
    if type(module) not in known:
        names = ", ".join(sorted(cls.name for cls in known))
        raise PolicyError(
            f"'{module.name}' is a codec that the live caches do not know: define a subclass of "
            f"kvlab.caches.codecs.Codec with module = {type(module).__name__}, or write one of {names}"
        )
    return known[type(module)](module)  # type: ignore[call-arg]


@functools.cache
def _read_folder() -> None:
    """Import all files of this folder: a codec is known once its class is defined."""
    for file in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{file.name}")
