"""Labels of policies that stand side by side: in tables, legends and reports."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator

from kvlab.errors import PolicyError
from kvlab.policies.policy import Policy
from kvlab.policies.slots import Module, format_value, inner_fields

Parameter = tuple[int, str, str, str]
"""Depth in parentheses, slot, name and default: a ``budget`` that a label leaves out reads as this default."""

PLACES = ("dir",)
"""Parameters that say where KV is and not how it is kept: a label names them only where they differ."""


def policy_labels(policies: Iterable[str | Policy | Module]) -> dict[str, str]:
    """Return the shortest distinct label of each policy, by its text and in the order given.

    A label is a spec that reads as that policy, but for a folder that is the same for all. A parameter at its default
    is left out only where every policy of the set that names a module with it leaves it there: beside
    ``snapkv:budget=0.25`` stands ``snapkv:budget=0.5``, and also ``knorm:budget=0.5``. A text that the modules of this
    process cannot read (of a server, of another process) is its own label.
    """
    texts = dict.fromkeys(str(policy) for policy in policies)
    read = {text: policy for text in texts if (policy := _read(text)) is not None}
    values: dict[Parameter, set[str]] = defaultdict(set)
    for parameter, value in (one for policy in read.values() for one in _parameters(policy)):
        values[parameter].add(value)
    varied = {parameter for parameter, found in values.items() if len(found) > 1}
    return {text: _label(read[text], varied) if text in read else text for text in texts}


def _read(text: str) -> Policy | None:
    try:
        return Policy.parse(text)
    except PolicyError:
        return None


def _label(policy: Policy, varied: set[Parameter]) -> str:
    """Write the modules that the policy names, with the parameters that are varied or not at their default."""

    def is_shown(module: Module, field: dataclasses.Field[object], depth: int) -> bool:
        value = getattr(module, field.name)
        if _parameter(module, field, depth) in varied or (value != field.default and field.name not in PLACES):
            return True
        return isinstance(value, Module) and bool(shown(value, depth + 1))

    def shown(module: Module, depth: int = 0) -> list[dataclasses.Field[object]]:
        return [field for field in dataclasses.fields(module) if is_shown(module, field, depth)]

    def write(module: Module, depth: int = 0) -> str:
        return module.written(shown(module, depth), lambda inner: write(inner, depth + 1))

    return "|".join(write(module) for module in policy.named.values()) or "full"


def _parameters(policy: Policy) -> Iterator[tuple[Parameter, str]]:
    """Yield each parameter of the modules that the policy names, and of those in their parentheses, with its value."""
    pending = [(module, 0) for module in policy.named.values()]
    while pending:
        module, depth = pending.pop()
        for field in dataclasses.fields(module):
            yield _parameter(module, field, depth), format_value(getattr(module, field.name))
        inner = (getattr(module, name) for name in inner_fields(type(module)))
        pending.extend((one, depth + 1) for one in inner if one is not None)


def _parameter(module: Module, field: dataclasses.Field[object], depth: int) -> Parameter:
    return depth, module.slot, field.name, repr(field.default)
