"""Sizes of values under a schema: the smallest value, and the most that one choice can add to it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from kvlab.server.structured.enforceable import FORMATS
from kvlab.server.structured.patterns import example

MAX_ROUNDS = 200
"""Rounds over all definitions: each finds the smallest value of one more level of references."""


def sizes(schema: Mapping[str, Any]) -> tuple[float, float]:
    """Return bytes of JSON: about the smallest value of an enforceable schema, and the most that one choice adds.

    The first is infinite when no value is finite: the schema contains itself, and must.
    """
    definitions = schema.get("$defs", {})
    known = dict.fromkeys(definitions, math.inf)
    for _ in range(MAX_ROUNDS):
        before = dict(known)
        for name in reversed(definitions):  # a reference mostly leads to a later one
            known[name] = _smallest(definitions[name], known)
        if known == before:
            break
    return _smallest(schema, known), max(_heaviest(part, known) for part in (schema, *definitions.values()))


def _smallest(node: Any, known: Mapping[str, float]) -> float:
    """Return about the bytes of the smallest value. ``known``: those of the definitions."""
    if not isinstance(node, Mapping):
        return 1 if node is not False else math.inf
    parts: list[float] = []
    if "const" in node:
        return _text(node["const"])
    if "enum" in node:
        return min(map(_text, node["enum"]))
    for key in ("anyOf", "oneOf"):
        if node.get(key):
            parts.append(min(_smallest(option, known) for option in node[key]))
    parts += [_smallest(part, known) for part in node.get("allOf", ())]
    if "$ref" in node:
        parts.append(known.get(node["$ref"].removeprefix("#/$defs/"), 1))
    kinds = node.get("type", ())
    kinds = [kinds] if isinstance(kinds, str) else kinds
    own = [_SIZES[kind](node, known) for kind in kinds]
    if own:
        parts.append(min(own))
    elif not parts:  # any value: the keywords of one type leave others open
        parts.append(1)
    return sum(parts)


def _object(node: Mapping[str, Any], known: Mapping[str, float]) -> float:
    properties, rest = node.get("properties", {}), node.get("additionalProperties", {})
    required = node.get("required", ())
    total: float = 2
    for name in required:
        total += len(json.dumps(name)) + 4 + _smallest(properties.get(name, rest), known)
    missing = node.get("minProperties", 0) - len(required)
    if missing <= 0:
        return total
    others = [rest, *node.get("patternProperties", {}).values(), *properties.values()]
    return total + missing * (16 + min(_smallest(part, known) for part in others))


def _array(node: Mapping[str, Any], known: Mapping[str, float]) -> float:
    least, first = node.get("minItems", 0), node.get("prefixItems", ())
    total: float = 2 + sum(_smallest(item, known) + 2 for item in first[:least])
    more = least - len(first)
    return total + (more * (2 + _smallest(node.get("items", {}), known)) if more > 0 else 0)


def _string(node: Mapping[str, Any], known: Mapping[str, float]) -> float:
    text = len(example(node["pattern"])) if "pattern" in node else len(FORMATS.get(node.get("format", ""), ""))
    return 2 + max(node.get("minLength", 0), text)


def _number(node: Mapping[str, Any], known: Mapping[str, float]) -> float:
    return max((len(repr(node[key])) for key in ("minimum", "maximum", "multipleOf") if key in node), default=1)


_SIZES = {
    "object": _object,
    "array": _array,
    "string": _string,
    "number": _number,
    "integer": _number,
    "boolean": lambda node, known: 4.0,
    "null": lambda node, known: 4.0,
}


def _heaviest(node: Any, known: Mapping[str, float]) -> float:
    """Return the bytes of the largest thing that one choice may begin: an option, a property, a constant."""
    if isinstance(node, list):
        return max((_heaviest(item, known) for item in node), default=0)
    if not isinstance(node, Mapping):
        return 0
    most = 0.0
    if "enum" in node:
        most = max(map(_text, node["enum"]))
    elif (size := _smallest(node, known)) < math.inf:
        most = size
    for key in ("properties", "patternProperties"):
        if isinstance(node.get(key), Mapping):
            for name, part in node[key].items():
                most = max(most, len(json.dumps(name)) + _heaviest(part, known))
    for key in ("anyOf", "oneOf", "allOf", "prefixItems", "items", "additionalProperties"):
        most = max(most, _heaviest(node.get(key), known))
    return most


def _text(value: Any) -> float:
    return len(json.dumps(value, ensure_ascii=False).encode())
