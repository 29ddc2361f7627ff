"""The systems that exist, and how their names are read."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import pkgutil
import typing
from pathlib import Path
from typing import Any

from kvlab.errors import KvlabError, PolicyError
from kvlab.policies.grammar import read_value
from kvlab.systems.base import VARIANTS, System

PRESETS = "presets"


class UnknownSystem(KvlabError):
    """A system, variant, engine or option that does not exist."""


def known_systems() -> list[type[System]]:
    """Return the class of every system, variant and engine; the first engine of a variant is its default."""
    _read_folder()
    found: list[type[System]] = []
    pending = list(System.__subclasses__())
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if cls.__dict__.get("name"):
            found.append(cls)
    return sorted(found, key=lambda cls: (cls.name, VARIANTS.index(cls.variant)))


def system_names() -> list[str]:
    """Return the names of the systems, each once."""
    return list(dict.fromkeys(cls.name for cls in known_systems()))


def default_engine(name: str, variant: str) -> str:
    """Return the engine that a name alone means."""
    return next(cls.engine for cls in known_systems() if (cls.name, cls.variant) == (name, variant))


def parse_system(text: str | System) -> System:
    """Read a system such as ``omlx``, ``ollama:engine=mlx`` or ``llama.cpp:variant=article,context=8192``.

    Raises:
        UnknownSystem: the name, variant, engine or option does not exist, or a value cannot be read.
    """
    if isinstance(text, System):
        return text
    name, _, rest = text.strip().partition(":")
    if name not in system_names():
        near = difflib.get_close_matches(name, system_names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UnknownSystem(f"unknown system '{name}': {hint}known are {', '.join(system_names())}")
    given = _options(name, rest)
    cls = _chosen(name, given.pop("variant", None), given.pop("engine", None))
    kinds = typing.get_type_hints(cls)
    takes = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in takes:
            raise UnknownSystem(f"system '{name}' has no option '{key}': it takes {', '.join(['variant', *takes])}")
        try:
            values[key] = read_value(name, key, value, kinds[key])
        except PolicyError as error:
            raise UnknownSystem(str(error).replace(f"policy '{name}'", f"system '{name}'")) from error
    return cls(**values)


def _options(name: str, text: str) -> dict[str, str]:
    """Return the options of a spec by name, as text. Raises UnknownSystem for one without ``=`` or given twice."""
    found: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or key in found:
            raise UnknownSystem(f"system '{name}' cannot read '{item.strip()}': write each option once, as key=value")
        found[key] = value
    return found


def _chosen(name: str, variant: str | None, engine: str | None) -> type[System]:
    """Return the class of a variant and engine; the first one where they are not named. Raises UnknownSystem."""
    for word, wanted in (("variant", variant), ("engine", engine)):
        there = list(dict.fromkeys(getattr(cls, word) for cls in known_systems() if cls.name == name))
        if wanted is not None and wanted not in filter(None, there):
            names = ", ".join(filter(None, there)) or f"no {word}s"
            raise UnknownSystem(f"system '{name}' has no {word} '{wanted}': there are {names}")
    fitting = [
        cls
        for cls in known_systems()
        if cls.name == name and (variant is None or cls.variant == variant) and (engine is None or cls.engine == engine)
    ]
    if not fitting:
        raise UnknownSystem(f"system '{name}' has no engine '{engine}' in variant '{variant}'; leave one of them out")
    return fitting[0]


@functools.cache
def _read_folder() -> None:
    """Import all presets: a system is known once its class is defined."""
    for file in pkgutil.iter_modules([str(Path(__file__).parent / PRESETS)]):
        importlib.import_module(f"{__package__}.{PRESETS}.{file.name}")
