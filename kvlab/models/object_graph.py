"""What an object holds, part by part: a model is a graph of modules, containers, plain objects and functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import mlx.core as mx

LEAF_TYPES = (str, bytes, int, float, complex, bool, type(None), type, ModuleType)

FUNCTION_TYPES = (FunctionType, type(mx.compile(lambda: None)))
"""Functions of Python, and those that MLX compiles, which show the same attributes."""

Part = tuple[str, Any]
"""A label, the same in every process, and a value."""


def parts(value: Any) -> Iterator[Part]:
    """What ``value`` holds, with labels. Reads attributes from where they are stored, and so runs no property."""
    if isinstance(value, Mapping):  # an nn.Module is a dict of its arrays, and an object with attributes as well
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{at}]", part) for at, part in enumerate(value))
    elif isinstance(value, functools.partial):
        yield "func", value.func
        yield from ((f"args[{at}]", part) for at, part in enumerate(value.args))
        yield from ((f"keywords[{name}]", part) for name, part in value.keywords.items())
    elif isinstance(value, MethodType):
        yield from (("self", value.__self__), ("function", value.__func__))
    elif isinstance(value, FUNCTION_TYPES):
        yield from _function_parts(value)
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        for name in _slots(kind):
            yield f".{name}", getattr(value, name, None)


def arrays(root: Any) -> Iterator[mx.array]:
    """Every array in modules, containers, plain objects and functions under ``root``, each once."""
    seen: dict[int, Any] = {}  # holds what it has seen: an id is unique only while its object lives
    left = [root]
    while left:
        value = left.pop()
        if isinstance(value, LEAF_TYPES) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, mx.array):
            yield value
        else:
            left.extend(part for _, part in parts(value))


def _function_parts(function: Any) -> Iterator[Part]:
    yield from ((f"cell[{at}]", part) for at, part in enumerate(_closure(function)))
    yield from ((f"default[{at}]", part) for at, part in enumerate(function.__defaults__ or ()))
    yield from ((f"default[{name}]", part) for name, part in (function.__kwdefaults__ or {}).items())


def _closure(function: Callable[..., Any]) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(f"_{kind.__name__.lstrip('_')}{name}" if _is_mangled(name) else name for name in names)


def _is_mangled(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")
