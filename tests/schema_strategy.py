"""Random JSON schemas out of all constructs that clients send, and the check of a value that a grammar promises."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from kvlab.server.structured.request_grammar import Unenforced

TYPE_NAMES = {
    "object": ("object", "dict", "HashMap", "Dict<str, int>", "map[string]int"),
    "array": ("array", "list", "ArrayList", "tuple", "String[]", "List<Integer>"),
    "string": ("string", "String", "str", "char", "varchar(20)"),
    "integer": ("integer", "int", "Long", "int64"),
    "number": ("number", "float", "Double", "decimal"),
    "boolean": ("boolean", "bool"),
    "null": ("null", "None", "NoneType"),
}
"""Names that catalogues give each JSON type."""
STANDARD = {name: standard for standard, names in TYPE_NAMES.items() for name in names}
NAMES = ("a", "b", "é", "x y", 'q"', "$ref", "~/", "")
PATTERNS = ("^[a-z]{2,4}$", "^a", r"\d+", "^(ab|c)*d$", "(?!x)y", r"\bz", "^[^a]*$", "(a|b){3}", "(", r"^\p{L}+$")
FORMATS = ("date", "date-time", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "path", "color")
REFERENCES = ("#", "#/$defs/a", "#/$defs/b", "#/$defs/c", "#/properties/a")
WRONG = (
    *({"$ref": reference} for reference in ("#/$defs/none", "#none", "https://example.com/a.json")),
    *(7, [], "string", {"enum": []}, {"minLength": -1}, {"multipleOf": 0}, {"required": "a"}),
)
MAX_DEPTH = 3

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-1000, 1000), st.sampled_from([0.5, -2.25, 1e20]), st.sampled_from(NAMES)
)
constants = st.one_of(
    scalars, st.lists(scalars, max_size=2), st.dictionaries(st.sampled_from(NAMES), scalars, max_size=2)
)
counts = st.one_of(st.integers(0, 4), st.sampled_from([100, 3_000, 10**12]))
bounds = st.one_of(st.integers(-50, 50), st.sampled_from([0.1, -7.25, 1e17, 10**30, -1e-20]))
types = st.sampled_from([name for names in TYPE_NAMES.values() for name in names])
odd_types = st.sampled_from(["any", "", "Color", "file path"])


@st.composite
def _keywords(draw: st.DrawFn, depth: int) -> dict[str, Any]:
    """One schema of a few keywords."""
    part = parts(depth + 1)
    some = st.lists(part, min_size=1, max_size=3)
    by_name = st.dictionaries(st.sampled_from(NAMES), part, max_size=3)
    names = st.lists(st.sampled_from(NAMES), max_size=2)
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "type": st.one_of(types, types, odd_types, st.lists(types, min_size=1, max_size=3)),
        "required": names,
        "enum": st.lists(constants, min_size=1, max_size=3),
        "const": constants,
        "format": st.sampled_from(FORMATS),
        "pattern": st.sampled_from(PATTERNS),
        "multipleOf": st.sampled_from([1, 2, 5, 0.1, 0.25, 12, 7, 99_991]),
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), bounds),
        **dict.fromkeys(("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"), counts),
        "uniqueItems": st.booleans(),
        "description": st.text(max_size=5),
    }
    chosen = draw(
        st.lists(st.sampled_from(sorted(keywords)), min_size=int(depth >= MAX_DEPTH), max_size=3, unique=True)
    )
    if depth < MAX_DEPTH:
        holders: dict[str, st.SearchStrategy[Any]] = {
            **dict.fromkeys(("properties", "dependentSchemas"), by_name),
            **dict.fromkeys(("items", "additionalProperties", "not", "if", "then", "else", "contains"), part),
            **dict.fromkeys(("anyOf", "oneOf", "allOf", "prefixItems"), some),
            "patternProperties": st.dictionaries(st.sampled_from(PATTERNS), part, max_size=2),
            "propertyNames": part,
            "$ref": st.sampled_from(REFERENCES),
        }
        chosen += draw(st.lists(st.sampled_from(sorted(holders)), min_size=1, max_size=3, unique=True))
        keywords |= holders
    return {key: draw(keywords[key]) for key in chosen}


@st.composite
def _typed(draw: st.DrawFn, depth: int) -> dict[str, Any]:
    """A schema of the form that clients mostly send: a type, and keywords of that type."""
    part = parts(depth + 1)
    kind = draw(st.sampled_from(sorted(TYPE_NAMES)))
    made: dict[str, Any] = {"type": draw(st.sampled_from(TYPE_NAMES[kind]))}
    if kind == "object" and depth < MAX_DEPTH:
        made["properties"] = draw(st.dictionaries(st.sampled_from(NAMES), part, min_size=1, max_size=3))
        made["required"] = [name for name in made["properties"] if draw(st.booleans())]
        if draw(st.booleans()):
            made["additionalProperties"] = draw(st.one_of(st.booleans(), part))
    elif kind == "array" and depth < MAX_DEPTH:
        made["items"] = draw(part)
        made["minItems"] = draw(st.integers(0, 3))
    elif kind == "string":
        made |= draw(
            st.one_of(
                st.just({}),
                st.fixed_dictionaries({"pattern": st.sampled_from(PATTERNS)}),
                st.fixed_dictionaries({"format": st.sampled_from(FORMATS)}),
                st.fixed_dictionaries({"minLength": st.integers(0, 30), "maxLength": st.integers(20, 60)}),
            )
        )
    elif kind in ("integer", "number"):
        if draw(st.booleans()):
            made["multipleOf"] = draw(st.sampled_from([1, 5, 12, 0.25]))
        made |= {"minimum": draw(st.integers(-100, 0)), "maximum": draw(st.integers(12, 500))}
    return made


def parts(depth: int) -> st.SearchStrategy[Any]:
    """Schemas ``depth`` levels below the root; a few of them are booleans, references, or no schema."""
    return st.deferred(
        lambda: st.sampled_from(range(40)).flatmap(
            lambda i: (
                st.booleans()
                if i == 0
                else st.sampled_from(WRONG)
                if i == 1
                else st.sampled_from([{"$ref": reference} for reference in REFERENCES])
                if i < 6
                else _keywords(depth)
                if i < 24
                else _typed(depth)
            )
        )
    )


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Return a schema with definitions that may refer to each other and to themselves."""
    root = draw(st.one_of(_typed(0), _keywords(0)))
    return {**root, "$defs": {name: draw(parts(1)) for name in "abc"}}


WRAPS = {
    "properties": lambda part: {"type": "object", "properties": {"n": part}, "required": ["n"]},
    "items": lambda part: {"type": "array", "items": part, "minItems": 1},
    "prefixItems": lambda part: {"type": "array", "prefixItems": [part], "minItems": 1},
    "additionalProperties": lambda part: {"type": "object", "additionalProperties": part},
    "patternProperties": lambda part: {"type": "object", "patternProperties": {"^a": part}},
    "anyOf": lambda part: {"anyOf": [part, {"type": "null"}]},
    "oneOf": lambda part: {"oneOf": [{"type": "null"}, part]},
    "allOf": lambda part: {"allOf": [part]},
    "not": lambda part: {"not": part},
    "if": lambda part: {"if": part, "then": part, "else": {}} if len(json.dumps(part)) < 200 else {"if": part},
    "dependentSchemas": lambda part: {"dependentSchemas": {"a": part}},
}
"""One schema around another, by the keyword that holds it."""


@st.composite
def deep_schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Return a schema some or very many levels below others."""
    part = draw(parts(2))
    keywords = draw(st.lists(st.sampled_from(sorted(WRAPS)), min_size=1, max_size=3))
    for i in range(draw(st.one_of(st.integers(5, 40), st.sampled_from([95, 300])))):
        part = WRAPS[keywords[i % len(keywords)]](part)
    return {**part, "$defs": {name: draw(parts(2)) for name in "abc"}}


@st.composite
def wide_schemas(draw: st.DrawFn) -> dict[str, Any]:
    """Return a schema of many properties, options, items, constants or definitions."""
    some = draw(st.lists(parts(2), min_size=1, max_size=3))
    count = draw(st.sampled_from([20, 60, 130, 1_001]))
    many = [some[i % len(some)] for i in range(count)]
    named = {f"p{i}": part for i, part in enumerate(many)}
    wide = draw(
        st.sampled_from(
            [
                {"type": "object", "properties": named},
                {"type": "object", "properties": named, "required": list(named)[:10]},
                {"type": "object", "patternProperties": {f"^p{i}": part for i, part in enumerate(many)}},
                {"anyOf": many},
                {"oneOf": [WRAPS["properties"]({"const": i}) for i in range(count)]},
                {"allOf": [{"anyOf": some} for _ in range(count)]},
                {"type": "array", "prefixItems": many},
                {"enum": [f"value {i}" for i in range(20 * count)]},
                {"$ref": "#/$defs/p0"},
            ]
        )
    )
    chain = {f"p{i}": WRAPS["properties"]({"$ref": f"#/$defs/p{i + 1}"}) for i in range(count - 1)}
    definitions = {name: draw(parts(2)) for name in "abc"} | chain | {f"p{count - 1}": {}}
    return {**wide, "$defs": definitions}


def any_schemas() -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(schemas(), schemas(), schemas(), deep_schemas(), wide_schemas())


# -- the check ------------------------------------------------------------------------------------------------------


def promised(schema: Any, unenforced: Sequence[Unenforced]) -> Any:
    """Return the schema with standard type names, without the keywords that its grammar said it leaves open."""
    made = _standard(json.loads(json.dumps(schema)))
    for open_ in sorted(unenforced, key=lambda open_: -open_.path.count("/")):  # inner parts while their paths hold
        made = _opened(made, open_)
    return made


def _standard(node: Any) -> Any:
    """Write type names as JSON Schema does; a name of no type allows any."""
    if not isinstance(node, Mapping):
        return node
    made = dict(node)
    if "type" in made:
        names = made["type"] if isinstance(made["type"], list) else [made["type"]]
        if all(name in STANDARD for name in names):
            made["type"] = sorted({STANDARD[name] for name in names})
        else:
            del made["type"]
    for key in ("properties", "patternProperties", "dependentSchemas", "$defs"):
        if isinstance(made.get(key), Mapping):
            made[key] = {name: _standard(part) for name, part in made[key].items()}
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(made.get(key), list):
            made[key] = [_standard(part) for part in made[key]]
    for key in ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"):
        if key in made:
            made[key] = _standard(made[key])
    return made


def _opened(schema: Any, open_: Unenforced) -> Any:
    keys = [key.replace("~1", "/").replace("~0", "~") for key in open_.path.removeprefix("#").split("/")[1:]]
    holder: Any = {"": schema}
    key: Any = ""
    for step in keys:
        holder, key = holder[key], step
        if isinstance(holder, list):
            key = int(step)
    if not open_.keyword:
        holder[key] = {}
    elif open_.keyword == "oneOf":
        if "oneOf" in holder[key]:  # else the same part was opened before
            holder[key].setdefault("allOf", []).append({"anyOf": holder[key].pop("oneOf")})
    else:
        holder[key].pop(open_.keyword, None)
        if open_.keyword == "if":
            holder[key].pop("then", None)
            holder[key].pop("else", None)
    if isinstance(holder, dict) and "" in holder and holder[""] is not schema and not keys:
        return holder[""]
    return schema


def _multiple(validator: Any, step: Any, value: Any, schema: Any) -> Any:
    """Check exactly: 0.3 is a multiple of 0.1."""
    if validator.is_type(value, "number") and (Fraction(repr(value)) / Fraction(repr(step))).denominator != 1:
        yield ValidationError(f"{value} is no multiple of {step}")


_Exact = extend(Draft202012Validator, {"multipleOf": _multiple})


def violation(value: Any, schema: Any) -> str:
    """Return how a value violates a schema, formats included; empty when it is valid."""
    error = next(iter(_Exact(schema, format_checker=FormatChecker(), registry=Registry()).iter_errors(value)), None)
    return "" if error is None else f"{error.json_path} {list(error.absolute_schema_path)}: {error.message[:300]}"


PLAIN_VALUES: tuple[Any, ...] = (None, True, False, 0, 5, 12, 60, 0.5, -35, "", "a", "12", "abc", "x" * 25, [], {})


def witness(schema: Any) -> Any:
    """Return a list of one value that satisfies a schema, or an empty one: a search among plain values."""
    check = _Exact(schema, format_checker=FormatChecker(), registry=Registry())
    found: list[Any] = [*PLAIN_VALUES, *_constants(schema)]
    for name in NAMES:
        found += [{name: value} for value in PLAIN_VALUES]
    for names in _name_lists(schema):
        found += [dict.fromkeys(names, value) for value in PLAIN_VALUES]
    for count in (1, 2, 3):
        found += [[value] * count for value in PLAIN_VALUES]
    for value in found:
        try:
            if check.is_valid(value):
                return [value]
        except (RecursionError, re.error, Unresolvable):
            return []
    return []


def _constants(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [value for item in node for value in _constants(item)]
    if not isinstance(node, Mapping):
        return []
    own = [node["const"]] if "const" in node else []
    own += node["enum"] if isinstance(node.get("enum"), list) else []
    return own + [value for item in node.values() for value in _constants(item)]


def _name_lists(node: Any) -> list[list[str]]:
    """Return the names of each object of a schema: all, and the required ones."""
    if isinstance(node, list):
        return [names for item in node for names in _name_lists(item)]
    if not isinstance(node, Mapping):
        return []
    own = [list(node[key]) for key in ("properties", "required") if isinstance(node.get(key), list | Mapping)]
    return own + [names for item in node.values() for names in _name_lists(item)]
