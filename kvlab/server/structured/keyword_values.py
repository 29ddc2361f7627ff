"""Checks of single keywords of a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvlab.server.structured import schema_limits as limits

MAX_COUNT = 2**31 - 1


class WrongKeyword(Exception):
    """A keyword whose value JSON Schema does not allow."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(what)
        self.path, self.what = path, what


def strings(value: Any, at: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise WrongKeyword(at, "required is a list of names")
    if len(value) > limits.MAX_PROPERTIES:
        raise WrongKeyword(at, f"at most {limits.MAX_PROPERTIES} names")
    return value


def count(key: str, value: Any, at: str) -> int:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise WrongKeyword(at, f"{key} is an integer of 0 or more")
    return min(int(value), MAX_COUNT)


def constants(key: str, value: Any, at: str) -> Any:
    values = value if key == "enum" else [value]
    if not isinstance(values, list) or not values:
        raise WrongKeyword(at, "enum is a list of at least one value")
    if len(values) > limits.MAX_ENUM_VALUES:
        raise WrongKeyword(at, f"at most {limits.MAX_ENUM_VALUES} values")
    for one in values:
        try:
            length = len(json.dumps(one, ensure_ascii=False, allow_nan=False))
        except ValueError as error:
            raise WrongKeyword(at, "JSON has no infinite numbers") from error
        if length > limits.MAX_VALUE_BYTES:
            raise WrongKeyword(at, f"a constant of {length} characters, at most {limits.MAX_VALUE_BYTES}")
    return value


def disjoint(options: list[Any]) -> bool:
    """True when it is plain that no value satisfies two of the options."""
    kinds = [option.get("type") if isinstance(option, Mapping) else None for option in options]
    if all(isinstance(kind, str) for kind in kinds):
        plain = ["number" if kind == "integer" else kind for kind in kinds]
        if len(set(plain)) == len(plain):
            return True
    tags: dict[str, list[Any]] = {}
    for option in options:
        if not isinstance(option, Mapping) or not isinstance(option.get("properties"), Mapping):
            return False
        for name in option.get("required", ()):
            part = option["properties"].get(name)
            if isinstance(part, Mapping) and "const" in part:
                tags.setdefault(name, []).append(json.dumps(part["const"], sort_keys=True))
    return any(len(set(values)) == len(values) == len(options) for values in tags.values())


def names_all_properties(node: Mapping[str, Any]) -> bool:
    """True unless a schema says that its objects may have, or must have, properties that it does not name."""
    if any(key in node for key in ("additionalProperties", "enum", "const")):
        return False
    lists = [node.get(key) for key in ("properties", "required")]
    names = {name for names in lists if isinstance(names, Mapping | list) for name in names if isinstance(name, str)}
    least = node.get("minProperties", 0)
    return not isinstance(least, int | float) or least <= len(names)
