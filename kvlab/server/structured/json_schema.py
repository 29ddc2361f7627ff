"""JSON schemas from clients: their normal form, and validation without the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import SchemaError, UnknownType  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable

# Type names that tool catalogues use and JSON Schema does not know.
TYPES = {
    "dict": "object",
    "map": "object",
    "float": "number",
    "double": "number",
    "int": "integer",
    "long": "integer",
    "str": "string",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
}
_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "not", "contains", "if", "then", "else", "propertyNames")
_PARTS = ("$ref", "if", "then", "else", "not")


def normal(schema: Any, close: bool = True) -> Any:
    """Return the schema with standard type names, closed against properties that it does not name.

    A closed answer is valid under the open schema too. ``close=False`` is for a part that other parts extend.
    """
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    kind = made.get("type")
    if kind == "any" or (isinstance(kind, list) and "any" in kind):
        del made["type"]
    elif isinstance(kind, str):
        made["type"] = TYPES.get(kind, kind)
    elif isinstance(kind, list):
        made["type"] = [TYPES.get(name, name) if isinstance(name, str) else name for name in kind]
    for key in _MAPS:
        if isinstance(made.get(key), Mapping):
            made[key] = {name: normal(value) for name, value in made[key].items()}
    named = isinstance(made.get("properties"), Mapping)
    for key in _LISTS:
        if isinstance(made.get(key), list):
            made[key] = [normal(value, key == "prefixItems" or (key != "allOf" and not named)) for value in made[key]]
    for key in _ONE:
        if isinstance(made.get(key), Mapping):
            made[key] = normal(made[key], key in ("items", "additionalProperties"))
    if named and close and not any(key in made for key in (*_LISTS, *_PARTS)):
        made.setdefault("additionalProperties", False)
    return made


def parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the normal schema of a tool's arguments: always an object."""
    schema = normal(tool["function"].get("parameters") or {})
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}


def problem(value: Any, schema: Mapping[str, Any]) -> str:
    """Describe the first error of a value under a schema; empty without one, or when the schema is invalid."""
    try:
        error = next(iter(_validator(json.dumps(schema, sort_keys=True)).iter_errors(value)), None)
    except (SchemaError, UnknownType, Unresolvable, ValueError, TypeError, RecursionError, AttributeError):
        return ""
    return error.message if error is not None else ""


@lru_cache(maxsize=256)
def _validator(text: str) -> Draft202012Validator:
    # An empty registry: references to other documents are never fetched.
    return Draft202012Validator(json.loads(text), registry=Registry())
