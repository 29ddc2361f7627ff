"""``GraphState``: what a fingerprint was computed from, so that a change is seen in a fraction of a millisecond."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import mlx.core as mx
import numpy as np

from kvlab.models.array_content import Descriptor, descriptor
from kvlab.models.object_graph import FUNCTION_TYPES

_VALUE = attrgetter("value")


class GraphState:
    """Compares by identity, and reads no content: an equal value that was assigned anew counts as a change.

    It holds everything it has seen, also what the model has let go since.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._descriptors: list[Descriptor] = []
        self._numbers: list[int] = []
        self._objects: list[Any] = []
        self._types: list[type] = []
        self._dicts = _Held(dict.values)
        self._lists = _Held(iter)
        self._classes = _Held(lambda kind: vars(kind).values())
        self._functions = _Held(lambda function: (function.__code__,))
        self._numpy: list[tuple[np.ndarray, bytes]] = []
        self._names: list[tuple[dict[str, Any], str, Any]] = []

    def add_array(self, array: mx.array) -> None:
        """Add what an array refers to now."""
        # The copy keeps what is referred to, so that its number cannot become that of something else.
        self._kept += [array, copy.copy(array)]
        self._descriptors.append(descriptor(array))
        self._numbers.append(self._descriptors[-1].value)

    def add(self, value: Any) -> None:
        """Add a container, an object or a function with what it holds now."""
        self._kept.append(value)
        if isinstance(value, dict):
            self._dicts.add(value)
        elif isinstance(value, list | set):
            self._lists.add(value)
        elif isinstance(value, FUNCTION_TYPES):
            self._functions.add(value)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._dicts.add(attributes)
            self._objects.append(value)
            self._types.append(type(value))

    def add_members(self, kind: type) -> None:
        """Add the functions and constants of a class."""
        self._classes.add(kind)

    def add_names(self, places: Iterable[tuple[dict[str, Any], str]]) -> None:
        """Add what names mean in files now."""
        self._names += [(space, name, space[name]) for space, name in places]

    def add_numpy(self, array: np.ndarray) -> None:
        """Add the content of an array that is no array of MLX."""
        self._numpy.append((array, array.tobytes()))

    def is_current(self) -> bool:
        """Return whether everything is as it was. Evaluates nothing."""
        return (
            list(map(_VALUE, self._descriptors)) == self._numbers
            and all(map(is_, map(type, self._objects), self._types))
            and self._dicts.is_current()
            and self._lists.is_current()
            and self._classes.is_current()
            and self._functions.is_current()
            and all(space.get(name) is value for space, name, value in self._names)
            and all(array.tobytes() == before for array, before in self._numpy)
        )


class _Held:
    """Owners, and what all of them held when they were added, in one list: comparing it takes one pass."""

    def __init__(self, read: Callable[[Any], Iterable[Any]]) -> None:
        self._read = read
        self._owners: list[Any] = []
        self._values: list[Any] = []

    def add(self, owner: Any) -> None:
        self._owners.append(owner)
        self._values.extend(self._read(owner))

    def is_current(self) -> bool:
        now = list(chain.from_iterable(map(self._read, self._owners)))
        return len(now) == len(self._values) and all(map(is_, now, self._values))
