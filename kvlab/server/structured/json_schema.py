"""JSON schemas from clients: their normal form, and validation of bounded cost, without the network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import SchemaError, UnknownType, ValidationError  # type: ignore[import-untyped]
from jsonschema.validators import extend  # type: ignore[import-untyped]
from referencing import Registry
from referencing.exceptions import Unresolvable

from kvlab.server.structured.keyword_values import names_all_properties
from kvlab.server.structured.type_names import json_type

MAX_VALIDATION_STEPS = 20_000
"""Keywords that one validation may look at: about 0.2 s. Schemas that refer to themselves could ask for any number."""
MAX_PATTERN_S = 0.05
"""Time of one search for a pattern: some take exponential time on some texts."""
MAX_JSON_DIGITS = 4_000
"""Digits of an integer; Python reads 4,300."""
_MAPS = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONE = ("items", "additionalProperties", "not", "contains", "if", "then", "else", "propertyNames")
_PARTS = ("$ref", "if", "then", "else", "not")


def normal(schema: Any, close: bool = True) -> Any:
    """Return the schema with standard type names, closed against properties that it does not name.

    A closed answer is valid under the open schema too. ``close=False`` is for a part that other parts extend. Names
    in ``required`` that ``properties`` lacks may have any value.
    """
    if not isinstance(schema, Mapping):
        return schema
    made = dict(schema)
    if "type" in made:
        names = made["type"] if isinstance(made["type"], list) else [made["type"]]
        types = [json_type(name) for name in names]
        if all(types) and types:
            made["type"] = list(dict.fromkeys(types)) if isinstance(made["type"], list) else types[0]
        else:
            del made["type"]
    if isinstance(made.get("required"), bool):  # some catalogues mark each property
        del made["required"]
    for key in _MAPS:
        if isinstance(made.get(key), Mapping):
            shut = key not in ("$defs", "definitions")
            made[key] = {name: normal(value, shut) for name, value in made[key].items()}
    named = isinstance(made.get("properties"), Mapping)
    for key in _LISTS:
        if isinstance(made.get(key), list):
            made[key] = [normal(value, key == "prefixItems" or (key != "allOf" and not named)) for value in made[key]]
    for key in _ONE:
        if isinstance(made.get(key), Mapping):
            made[key] = normal(made[key], key in ("items", "additionalProperties"))
    if named and close and not any(key in made for key in (*_LISTS, *_PARTS)) and names_all_properties(made):
        made["additionalProperties"] = False
        if isinstance(made.get("required"), list):
            open_names: dict[str, Any] = {name: {} for name in made["required"] if isinstance(name, str)}
            made["properties"] = open_names | made["properties"]
    return made


def parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return the normal schema of a tool's arguments: always an object."""
    schema = normal(tool["function"].get("parameters") or {})
    if not schema:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **schema}


def problem(value: Any, schema: Mapping[str, Any]) -> str:
    """Describe the first error of a value under a schema.

    Empty without one, when the schema is invalid, and when the validation takes too long.
    """
    try:
        error = next(iter(_validator(json.dumps(schema, sort_keys=True))(value)), None)
    except (SchemaError, UnknownType, Unresolvable, ValueError, TypeError, RecursionError, AttributeError, KeyError):
        return ""
    except (regex.error, TimeoutError, _TooLong):
        return ""
    return error.message[:500] if error is not None else ""


def loads(text: str) -> Any:
    """Parse JSON. Raises ValueError also for numbers that JSON readers disagree on: infinite, or of too many digits."""
    return json.loads(text, parse_float=_finite, parse_int=_short, parse_constant=_refused)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number beyond the range of double precision")
    return value


def _short(text: str) -> int:
    if len(text) > MAX_JSON_DIGITS:
        raise ValueError(f"an integer of more than {MAX_JSON_DIGITS} digits")
    return int(text)


def _refused(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


class _TooLong(Exception):
    """A validation reached its limit of steps."""


@lru_cache(maxsize=256)
def _validator(text: str) -> Callable[[Any], Iterator[ValidationError]]:
    schema = json.loads(text)

    def errors(value: Any) -> Iterator[ValidationError]:
        left = MAX_VALIDATION_STEPS

        def counted(check: Any) -> Any:
            def step(validator: Any, keyword: Any, instance: Any, part: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise _TooLong
                return check(validator, keyword, instance, part)

            return step

        checks = {**Draft202012Validator.VALIDATORS, "pattern": _pattern, "patternProperties": _pattern_properties}
        bounded = extend(Draft202012Validator, {name: counted(check) for name, check in checks.items()})
        # An empty registry: references to other documents are never fetched.
        yield from bounded(schema, registry=Registry()).iter_errors(value)

    return errors


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not regex.search(pattern, instance, timeout=MAX_PATTERN_S):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, part in patterns.items():
        for key, value in instance.items():
            if regex.search(pattern, key, timeout=MAX_PATTERN_S):
                yield from validator.descend(value, part, path=key, schema_path=pattern)
