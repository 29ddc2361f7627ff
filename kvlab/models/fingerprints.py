"""The fingerprint of a model: a digest of everything in memory that decides what it computes."""

from __future__ import annotations

import hashlib
import threading
import weakref
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import xxhash

from kvlab.models.array_content import ArrayDigests
from kvlab.models.code_tokens import class_members, code_tokens, is_read, named_by, own_classes, plain
from kvlab.models.graph_state import GraphState
from kvlab.models.object_graph import FUNCTION_TYPES, LEAF_TYPES, arrays, parts

FORMAT = "kvlab model 1"
"""Raising its number gives every model another fingerprint."""
FINGERPRINT_BYTES = 16

NOT_COMPUTED_WITH = ("._no_grad", "._kvlab_")
"""How attributes begin that change no result: which arrays are trained, and what kvlab notes on a model."""


class Fingerprints:
    """Computes the fingerprint of one model as it is now, as often as asked. Any thread may ask.

    It covers the content, shape and dtype of every array (parameters, buffers and private arrays, adapters too), every
    setting of every layer (bits, group size, mode, LoRA scale, the model's arguments), the structure, and the code of
    the classes and functions that compute. It does not cover names of files and folders.

    The content of arrays is read once, and again where an array is replaced or written in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._digests = ArrayDigests()
        self._lock = threading.Lock()
        self._last: tuple[str, weakref.ref[GraphState]] | None = None

    def now(self) -> str:
        """Return the fingerprint, 32 hexadecimal digits."""
        return self.take()[0]

    def take(self) -> tuple[str, GraphState]:
        """Return the fingerprint, and the state of what it was computed from.

        Raises RuntimeError for an array that another thread made and did not evaluate.
        """
        with self._lock:
            fingerprint, last = (self._last[0], self._last[1]()) if self._last else ("", None)
            if last is not None and last.is_current():  # someone watches the model, so that nothing need be read
                return fingerprint, last
            self._digests.update(arrays(self._model))
            walk = _Walk(self._digests)
            walk.visit(self._model)
            self._last = walk.digest.hexdigest(), weakref.ref(walk.state)
            return walk.digest.hexdigest(), walk.state


def code_fingerprint(*kinds: type) -> str:
    """Return a digest of the code of classes, with what their methods call: 32 hexadecimal digits."""
    walk = _Walk(ArrayDigests())
    for kind in kinds:
        walk.visit_class(kind)
    return walk.digest.hexdigest()


class _Walk:
    """Writes everything under a model into a digest, always in the same order."""

    def __init__(self, digests: ArrayDigests) -> None:
        self.digest = hashlib.blake2b(FORMAT.encode(), digest_size=FINGERPRINT_BYTES)
        self.state = GraphState()
        self._digests = digests
        self._places: dict[int, int] = {}

    def visit(self, value: Any) -> None:
        if isinstance(value, FUNCTION_TYPES):
            value = plain(value)
        if isinstance(value, LEAF_TYPES):
            self._write(_leaf(value))
        elif isinstance(value, mx.array):
            self.state.add_array(value)
            self._write(f"array {value.dtype} {value.shape}", self._digests[value])
        elif isinstance(value, np.ndarray):
            content = np.ascontiguousarray(value)
            self.state.add_numpy(value)
            self._write(f"numpy {value.dtype} {value.shape}", xxhash.xxh3_128_digest(content.view(np.uint8)))
        elif isinstance(value, mx.Dtype):
            self._write(str(value))
        elif (place := self._places.get(id(value))) is not None:
            self._write(f"again {place}")
        else:
            self._places[id(value)] = len(self._places)
            self.state.add(value)  # which also keeps it, so that its id stays its own
            self._enter(value)

    def _enter(self, value: Any) -> None:
        if isinstance(value, FUNCTION_TYPES):
            self._function(value)
        elif isinstance(name := getattr(value, "__qualname__", None), str):
            self._write(f"{value.__module__} {name}")  # a function of C++
        self.visit_class(type(value))
        held = [(label, part) for label, part in parts(value) if not label.startswith(NOT_COMPUTED_WITH)]
        if isinstance(value, set | frozenset):
            held = [("", part) for _, part in sorted(held, key=lambda part: repr(_leaf(part[1])))]
        elif not isinstance(value, list | tuple):
            held.sort(key=lambda part: part[0])
        self._write(f"{len(held)} parts")
        for label, part in held:
            self._write(label)
            self.visit(part)

    def visit_class(self, kind: type) -> None:
        self._write(f"class {kind.__module__} {kind.__qualname__}")
        for base in own_classes(kind):
            if id(base) in self._places:
                continue
            self._places[id(base)] = len(self._places)
            self.state.add_members(base)
            self._write(f"code of {base.__qualname__}")
            for name, member in class_members(base):
                self._write(name)
                self.visit(member)

    def _function(self, function: Any) -> None:
        """Write the code of a function and what it calls."""
        if not is_read(function.__module__):
            return
        self._write(f"function {function.__qualname__}", *(token.encode() for token in code_tokens(function.__code__)))
        found = list(named_by(function))
        self.state.add_names(found)
        for space, name in found:
            self._write(name)
            self.visit(space[name])

    def _write(self, text: str, *more: bytes) -> None:
        for token in (text.encode(), *more):
            self.digest.update(len(token).to_bytes(8, "little"))
            self.digest.update(token)


def _leaf(value: Any) -> str:
    if isinstance(value, type):
        return f"type {value.__module__} {value.__qualname__}"
    if isinstance(value, LEAF_TYPES):
        return f"{type(value).__name__} {getattr(value, '__name__', None) or repr(value)}"
    return f"object {type(value).__qualname__}"
