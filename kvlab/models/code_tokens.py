"""The code that a model runs, as text that is the same in every process: classes, functions, and what they call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType
from typing import Any

from kvlab.models.object_graph import FUNCTION_TYPES
from kvlab.paths import PACKAGE

CONSTANT_TYPES = (str, bytes, int, float, complex, bool, type(None))
LIBRARIES_NOT_READ = frozenset({"builtins", "numpy", "transformers", "torch", *sys.stdlib_module_names})
"""Packages whose code no model changes."""


def own_classes(kind: type) -> Iterator[type]:
    """The classes whose code an object of ``kind`` runs, without those of Python and of other libraries."""
    return (base for base in kind.__mro__ if is_read(base.__module__))


def is_read(module: str | None) -> bool:
    """Return whether the code of a module counts."""
    return (module or "builtins").partition(".")[0] not in LIBRARIES_NOT_READ


def class_members(kind: type) -> Iterator[tuple[str, Any]]:
    """Functions and constants that a class itself defines, by name; properties and methods as their functions."""
    for name, value in sorted(vars(kind).items()):
        if isinstance(value, FUNCTION_TYPES):
            yield name, value
        elif isinstance(value, staticmethod | classmethod):
            yield name, value.__func__
        elif isinstance(value, property):
            yield from ((f"{name}.{part}", getattr(value, part)) for part in ("fget", "fset") if getattr(value, part))
        elif isinstance(value, CONSTANT_TYPES) and not name.startswith("__"):
            yield name, value


def named_by(function: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the functions and constants lie that a function names: in its own file, and in modules such as ``nn``."""
    names = sorted(set(_names(function.__code__)))
    spaces = [function.__globals__]
    for space in spaces:
        for name in names:
            value = space.get(name)
            if isinstance(value, ModuleType):
                if is_read(value.__name__) and all(vars(value) is not known for known in spaces):
                    spaces.append(vars(value))
            elif isinstance(value, FUNCTION_TYPES):
                if is_read(value.__module__):
                    yield space, name
            elif name in space and isinstance(value, CONSTANT_TYPES):
                yield space, name


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself; for one that kvlab's own code wraps, the wrapped one, since kvlab computes the same."""
    code = getattr(function, "__code__", None)
    while code is not None and code.co_filename.startswith(str(PACKAGE)) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
        code = getattr(function, "__code__", None)
    return function


def code_tokens(code: CodeType) -> Iterator[str]:
    """What a compiled function does, without the names and lines of its file."""
    yield f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount} {code.co_flags}"
    yield code.co_code.hex()
    yield code.co_exceptiontable.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_tokens(constant)
        elif isinstance(constant, frozenset):
            yield repr(sorted(map(repr, constant)))
        else:
            yield f"{type(constant).__name__} {constant!r}"


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
