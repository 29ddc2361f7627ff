"""Evaluates everything a model holds, so that any thread can run it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import mlx.core as mx

_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, ModuleType)


def evaluate_arrays(root: Any) -> None:
    """Evaluate every array that can be reached from ``root``: parameters, private attributes, and what they refer to.

    Loading evaluates parameters only. mlx-lm computes the frequencies of scaled rotary embeddings as a private
    attribute, lazily, on the stream of the thread that builds the model; streams are thread-local, so another thread
    cannot compute them: "There is no Stream(cpu, 0) in current thread".
    """
    mx.eval(list(_arrays(root)))


def _arrays(root: Any) -> Iterator[mx.array]:
    """Every array in modules, containers, plain objects and functions under ``root``, each once."""
    seen: dict[int, Any] = {}  # holds what it has seen: an id is unique only while its object lives
    left = [root]
    while left:
        value = left.pop()
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, mx.array):
            yield value
        else:
            left.extend(_parts(value))


def _parts(value: Any) -> Iterator[Any]:
    """What ``value`` holds. Reads attributes from where they are stored, and so runs no property."""
    if isinstance(value, Mapping):  # an nn.Module is a dict of its arrays, and an object with attributes as well
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, FunctionType):
        yield from (*_closure(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        for name in _slots(kind):
            yield getattr(value, name, None)


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
