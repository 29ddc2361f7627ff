"""The part of a schema that a grammar can enforce, and a list of what it leaves out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple
from urllib.parse import unquote

from kvlab.server.errors import ApiError
from kvlab.server.structured import schema_limits as limits
from kvlab.server.structured.keyword_values import (
    WrongKeyword,
    constants,
    count,
    disjoint,
    names_all_properties,
    strings,
)
from kvlab.server.structured.patterns import example, why_unenforceable
from kvlab.server.structured.type_names import json_type

FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "date": "2026-01-01",
    "duration": "P1D",
    "email": "a@a.aa",
    "hostname": "a.aa",
    "ipv4": "1.1.1.1",
    "ipv6": "::",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "a:a",
}
"""The string formats that grammars enforce, with a short text of each. Others are annotations."""
MAX_MULTIPLE = 1_000
"""Least common multiple of all multipleOf in a schema, in units of their last digit: states of its automaton."""
MAX_BOUND_OF_MULTIPLE = 10_000
"""Largest bound that is enforced together with multipleOf: the product of both automata runs out of states."""
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
MAX_PATTERN_LENGTH_BOUND = 100
"""Largest minLength or maxLength that is enforced together with a pattern or format."""
CHECKED_KEYWORDS = (
    "not", "if", "contains", "minContains", "maxContains", "propertyNames", "dependentRequired", "dependentSchemas",
    "dependencies", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
"""Keywords that no grammar of llguidance expresses; the answer is checked against them when it is complete."""
_OPENS = ("anyOf", "oneOf", "allOf", "prefixItems", "$ref", "if", "then", "else", "not")
_CHEAP = {"type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "format"}


class Unenforced(NamedTuple):
    """A keyword that the grammar leaves open. ``path`` is a JSON pointer into the client's schema."""

    where: str
    path: str
    keyword: str
    reason: str


class Enforceable(NamedTuple):
    """A schema that llguidance compiles.

    Args:
        schema: the schema; its references lead to its own ``$defs``.
        unenforced: what it leaves open.
        paths: the client's JSON pointer of each of its definitions.
        endings: texts whose ends may complete a string under a pattern or format.
        cheap: it needs no trial, see :mod:`kvlab.server.structured.trial`.
    """

    schema: dict[str, Any]
    unenforced: tuple[Unenforced, ...]
    paths: Mapping[str, str]
    endings: tuple[str, ...]
    cheap: bool


def enforceable(schema: Any, where: str, *, strict: bool, is_object: bool = False) -> Enforceable:
    """Return what a grammar can enforce of a client's schema.

    Args:
        schema: the client's schema, of any depth and size.
        where: whose schema it is, for messages, such as ``tool 'search'``.
        strict: a schema that is wrong or contradictory is an error; otherwise its wrong part is left open.
        is_object: the value is an object, whatever the schema says.

    Raises:
        ApiError: 400 with the path of what is too large, and under ``strict`` of what is wrong.
    """
    limits.check_size(schema, where)
    return _Writer(schema, where, strict).write(is_object)


class _Writer:
    """Writes one schema anew. Recursion is safe here: the depth was checked."""

    def __init__(self, root: Any, where: str, strict: bool) -> None:
        self._root, self._where, self._strict = root, where, strict
        self._unenforced: list[Unenforced] = []
        self._names: dict[tuple[str, bool], str] = {}
        self._pending: list[tuple[str, Any, str, bool]] = []
        self._references: list[str] = []
        self._multiple = 1
        self._endings: dict[str, None] = {}
        self._cheap = True

    def write(self, is_object: bool) -> Enforceable:
        top = self._schema(self._root, "", True)
        if is_object:
            top = self._object(top)
        references, made = {"": self._references}, {"": top}
        paths = {}
        while self._pending:
            name, node, path, close = self._pending.pop()
            self._references = []
            paths[name], made[name] = path, self._schema(node, path, close)
            references[name] = self._references
        limits.check_references({name: _levels(node) for name, node in made.items()}, references, paths, self._where)
        limits.check_combinations(made, self._where)
        definitions = {name: node for name, node in made.items() if name}
        schema = {} if top is True else {"not": {}} if top is False else dict(top)
        if definitions:
            schema["$defs"] = definitions
        if len(json.dumps(schema)) > 20_000:
            self._cheap = False
        return Enforceable(schema, tuple(self._unenforced), paths, tuple(self._endings), self._cheap)

    def _object(self, top: Any) -> dict[str, Any]:
        """Return the form of a schema that allows objects only."""
        types = top.get("type", ["object"]) if isinstance(top, Mapping) else ["object"]
        if "object" not in ([types] if isinstance(types, str) else types):
            top = self._wrong("/type", "the arguments of a tool are an object")
        return {**(top or {}), "type": "object"}

    # -- one schema -------------------------------------------------------------------------------------------------

    def _schema(self, node: Any, path: str, close: bool) -> Any:
        """Return the enforceable form of one schema. ``close``: properties that it does not name are not allowed."""
        if isinstance(node, bool):
            return node
        if not isinstance(node, Mapping):
            return self._wrong(path, "a schema is an object or a boolean")
        before = len(self._unenforced)
        try:
            made = self._keywords(node, path, close)
        except WrongKeyword as wrong:
            del self._unenforced[before:]
            return self._wrong(wrong.path, wrong.what)
        named = isinstance(node.get("properties"), Mapping)
        if named and close and not any(key in node for key in _OPENS) and names_all_properties(node):
            self._close(made)
        return made

    def _close(self, made: dict[str, Any]) -> None:
        for name in made.get("required", ()):
            made["properties"].setdefault(name, {})
        made["additionalProperties"] = False

    def _keywords(self, node: Mapping[str, Any], path: str, close: bool) -> dict[str, Any]:
        made: dict[str, Any] = {}
        named = isinstance(node.get("properties"), Mapping)
        for key, value in node.items():
            at = f"{path}/{key}"
            if key == "type":
                self._type(made, value, at)
            elif key in ("properties", "patternProperties"):
                made[key] = self._properties(key, value, at)
            elif key == "required":
                if not isinstance(value, bool):  # some catalogues mark each property
                    made[key] = list(dict.fromkeys(strings(value, at)))
            elif key == "additionalProperties":
                made[key] = self._schema(value, at, True) if not isinstance(value, bool) else value
            elif key in ("items", "additionalItems"):
                self._items(made, key, value, at)
            elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
                self._options(
                    made, key, value, at, close=key == "prefixItems" or (close and key != "allOf" and not named)
                )
            elif key == "$ref":
                alone = not any(other in node for other in ("anyOf", "oneOf", "allOf", "properties"))
                self._reference(made, value, at, close=close and alone)
            elif key in ("enum", "const"):
                made[key] = constants(key, value, at)
                texts = [one for one in (value if key == "enum" else ()) if isinstance(one, str)]
                self._endings[min(texts, key=len, default="")[:100]] = None
            elif key in CHECKED_KEYWORDS or (key == "uniqueItems" and value):
                self._leave_open(path, key, "no grammar expresses it")
            else:
                self._bound(made, key, value, at)
            if key not in _CHEAP and key in made:
                self._cheap = False
        self._reconcile(made, path)
        return made

    def _type(self, made: dict[str, Any], value: Any, at: str) -> None:
        names = value if isinstance(value, list) else [value]
        types = [json_type(name) for name in names]
        if all(types) and types:
            made["type"] = types if isinstance(value, list) else types[0]
            if isinstance(value, list):
                made["type"] = list(dict.fromkeys(types))

    def _properties(self, key: str, value: Any, at: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise WrongKeyword(at, f"{key} is an object of schemas by name")
        most = limits.MAX_PROPERTIES if key == "properties" else limits.MAX_PATTERN_PROPERTIES
        if len(value) > most:
            raise limits.too_large(self._where, at, f"{len(value)} {key}, at most {most}")
        made = {}
        for name, part in value.items():
            if key == "patternProperties" and (reason := why_unenforceable(name)):
                self._leave_open(at, name, reason)
                continue
            made[name] = self._schema(part, f"{at}/{_escaped(name)}", True)
        return made

    def _items(self, made: dict[str, Any], key: str, value: Any, at: str) -> None:
        if isinstance(value, list):  # prefixItems before the draft of 2020
            self._options(made, "prefixItems", value, at, close=True)
        elif key == "items" or "prefixItems" in made:
            made["items"] = self._schema(value, at, True)

    def _options(self, made: dict[str, Any], key: str, value: Any, at: str, *, close: bool) -> None:
        if not isinstance(value, list) or (not value and key != "prefixItems"):
            raise WrongKeyword(at, f"{key} is a list of schemas")
        if len(value) > limits.MAX_OPTIONS:
            raise limits.too_large(self._where, at, f"{len(value)} schemas in {key}, at most {limits.MAX_OPTIONS}")
        made[key] = [self._schema(option, f"{at}/{i}", close) for i, option in enumerate(value)]
        if key == "oneOf" and not disjoint(made[key]):
            self._leave_open(at.removesuffix("/oneOf"), key, "a grammar takes it as anyOf")

    def _reference(self, made: dict[str, Any], value: Any, at: str, *, close: bool) -> None:
        if not isinstance(value, str):
            raise WrongKeyword(at, "$ref is a string")
        path, target = self._target(value, at)
        if path is None:
            self._leave_open(at.removesuffix("/$ref"), "$ref", "only references within the schema are followed")
            return
        name = self._names.get((path, close))
        if name is None:
            name = self._names[path, close] = f"r{len(self._names)}"
            self._pending.append((name, target, path, close))
        self._references.append(name)
        made["$ref"] = f"#/$defs/{name}"

    def _target(self, reference: str, at: str) -> tuple[str | None, Any]:
        base, _, fragment = reference.partition("#")
        own = self._root.get("$id") if isinstance(self._root, Mapping) else None
        if base and base != own:
            return None, None
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):  # an anchor
            for path, part in _nodes(self._root):
                if fragment in (part.get("$anchor"), part.get("$dynamicAnchor")):
                    return path, part
            raise WrongKeyword(at, f"no schema has the anchor {fragment!r}")
        node: Any = self._root
        for key in fragment.split("/")[1:]:
            key = key.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and len(key) < 9 and int(key) < len(node):
                node = node[int(key)]
            else:
                raise WrongKeyword(at, f"the schema has no {limits.shown(fragment)}")
        return fragment, node

    # -- bounds -----------------------------------------------------------------------------------------------------

    def _bound(self, made: dict[str, Any], key: str, value: Any, at: str) -> None:
        path = at[: -len(key) - 1]
        if key in ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"):
            made[key] = count(key, value, at)
        elif key in BOUNDS:
            if isinstance(value, bool):  # the draft of 2010: a mark on minimum or maximum
                made[key] = value
            elif not isinstance(value, int | float) or not math.isfinite(value):
                raise WrongKeyword(at, f"{key} is a finite number")
            elif value and not 1e-15 < abs(value) < 2**63:
                self._leave_open(path, key, "a bound of more digits than a grammar counts")
            else:
                made[key] = value
        elif key == "multipleOf":
            self._multiple_of(made, value, at)
        elif key == "pattern":
            if not isinstance(value, str):
                raise WrongKeyword(at, "pattern is a string")
            if reason := why_unenforceable(value):
                self._leave_open(path, key, reason)
            else:
                made[key] = value
                self._endings[example(value)] = None
        elif key == "format" and value in FORMATS:
            made[key] = value
            self._endings[FORMATS[value]] = None

    def _multiple_of(self, made: dict[str, Any], value: Any, at: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not math.isfinite(value):
            raise WrongKeyword(at, "multipleOf is a number above 0")
        exact = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
        digits = exact.numerator * (10**15 // exact.denominator) if 10**15 % exact.denominator == 0 else 10**18
        while digits % 10 == 0:
            digits //= 10
        together = math.lcm(self._multiple, digits)
        if together > MAX_MULTIPLE:
            self._leave_open(at.removesuffix("/multipleOf"), "multipleOf", f"beyond {MAX_MULTIPLE}")
            return
        self._multiple = together
        made["multipleOf"] = int(value) if float(value).is_integer() else value

    def _reconcile(self, made: dict[str, Any], path: str) -> None:
        """Drop what llguidance cannot enforce together, and write older drafts in today's form."""
        for bound, mark in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if isinstance(made.get(mark), bool) and made.pop(mark) and bound in made:
                made[mark] = made.pop(bound)
        if "pattern" in made and made.pop("format", None) is not None:
            self._leave_open(path, "format", "beside a pattern")
        if "pattern" in made or "format" in made:
            for key in ("minLength", "maxLength"):
                if made.get(key, 0) > MAX_PATTERN_LENGTH_BOUND:
                    del made[key]
                    self._leave_open(path, key, "beside a pattern or format")
        bounds = [abs(made[key]) for key in BOUNDS if key in made]
        if "multipleOf" in made and bounds and max(*bounds, 100 * self._multiple) > MAX_BOUND_OF_MULTIPLE:
            del made["multipleOf"]
            self._leave_open(path, "multipleOf", "beside such bounds")
        if made.get("minProperties", 0) > max(1, len(made.get("required", ()))):
            self._leave_open(path, "minProperties", "a grammar does not see that a name repeats")
        optional = set(made.get("properties", ())) - set(made.get("required", ()))
        for key in ("minProperties", "maxProperties"):
            if optional and key in made:
                del made[key]
                self._leave_open(path, key, "beside properties that are not required")

    # -- what is left open ------------------------------------------------------------------------------------------

    def _leave_open(self, path: str, keyword: str, reason: str) -> None:
        self._unenforced.append(Unenforced(self._where, limits.shown(path), keyword[:80], reason))

    def _wrong(self, path: str, what: str) -> dict[str, Any]:
        if self._strict:
            raise ApiError(400, f"the schema of {self._where} is wrong at {limits.shown(path)}: {what}")
        self._leave_open(path, "", what)
        return {}


def _levels(node: Any) -> int:
    if isinstance(node, Mapping):
        return 1 + max(map(_levels, node.values()), default=0)
    return 1 + max(map(_levels, node), default=0) if isinstance(node, list) else 0


def _nodes(node: Any, path: str = "") -> Any:
    """Yield every object in a schema with its JSON pointer."""
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}/{_escaped(str(key))}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _nodes(value, f"{path}/{i}")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
