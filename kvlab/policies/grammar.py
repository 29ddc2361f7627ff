"""Read a module from its spec."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module, known_modules


def parse_module(text: str) -> Module:
    """Read one module's spec, ``name`` or ``name:key=value,...``.

    Raises:
        PolicyError: unknown name, unknown parameter, or a value of the wrong kind.
    """
    name, _, rest = text.strip().partition(":")
    modules = known_modules()
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PolicyError(f"unknown policy '{name}': {hint}known are {', '.join(sorted(modules))}")
    cls = modules[name]
    kinds = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or key not in fields:
            takes = ", ".join(fields) or "no parameters"
            raise PolicyError(f"policy '{name}' has no parameter '{item.strip()}': it takes {takes}, as key=value")
        if key in values:
            raise PolicyError(f"policy '{name}' is given '{key}' twice")
        values[key] = read_value(name, key, value.strip(), kinds[key])
    return cls(**values)


def read_value(name: str, key: str, text: str, kind: Any) -> Any:
    """Convert a parameter's text to its declared type: int, float, ``int | float``, str, or one of these or None.

    Raises:
        PolicyError: the text is of another type.
    """
    options = typing.get_args(kind) or (kind,)
    if text.lower() == "none" and type(None) in options:
        return None
    for option in (int, float, str):
        if option not in options:
            continue
        try:
            return option(text)
        except ValueError:
            continue
    wanted = " or ".join(option.__name__ for option in options if option is not type(None))
    raise PolicyError(f"policy '{name}' cannot read {key}={text}: it takes a value of type {wanted}")
