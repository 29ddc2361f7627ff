"""Limits on what a schema may cost, checked before recursive or native code sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvlab.server.errors import ApiError

MAX_LEVELS = 96
"""Objects and lists inside each other. llguidance's JSON reader stops at 128."""
MAX_VALUES = 50_000
"""JSON values in one schema, annotations included."""
MAX_TEXT_BYTES = 1_000_000
"""Text in one schema, annotations included."""
MAX_REFERENCE_LEVELS = 500
"""Levels through which references lead. llguidance follows them on its stack, about 5 KB each."""
MAX_OPTIONS = 1_000
"""Schemas in one anyOf, oneOf, allOf or prefixItems."""
MAX_PROPERTIES = 1_000
"""Properties of one object."""
MAX_PATTERN_PROPERTIES = 50
"""Patterns in one patternProperties; llguidance compares each with each."""
MAX_ENUM_VALUES = 20_000
MAX_VALUE_BYTES = 10_000
"""JSON of one constant. A longer one makes each token slow."""
MAX_COMBINATIONS = 128
"""Ways to combine the options of anyOf lists that hold together; llguidance writes all of them out."""
MAX_GRAMMAR_BYTES = 600_000
"""JSON of all schemas of one request, without annotations."""


def check_size(schema: Any, where: str) -> None:
    """Check depth, number of values and text of a schema, without recursion.

    Raises ApiError 400, which names ``where`` and the path.
    """
    values = text = 0
    stack: list[tuple[str, Iterator[tuple[str, Any]]]] = [("", iter([("", schema)]))]
    while stack:
        path, children = stack[-1]
        step = next(children, None)
        if step is None:
            stack.pop()
            continue
        key, value = step
        values += 1
        text += len(key) + (len(value) if isinstance(value, str) else 0)
        at = f"{path}/{key}" if len(stack) > 1 else ""
        if values > MAX_VALUES:
            raise too_large(where, at, f"more than {MAX_VALUES} values")
        if text > MAX_TEXT_BYTES:
            raise too_large(where, at, f"more than {MAX_TEXT_BYTES} bytes of text")
        if isinstance(value, Mapping | list):
            if len(stack) > MAX_LEVELS:
                raise too_large(where, at, f"more than {MAX_LEVELS} levels inside each other")
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            stack.append((at, ((str(name), child) for name, child in items)))


def check_references(
    depths: Mapping[str, int], references: Mapping[str, list[str]], paths: Mapping[str, str], where: str
) -> None:
    """Check through how many levels references lead from ``""``, the root, in the order that a compiler takes.

    Args:
        depths: levels of each definition.
        references: the definitions that each refers to, in order.
        paths: the client's JSON pointer of each definition.
    """
    seen = {""}
    stack = [("", iter(references[""]))]
    levels = depths[""]
    while stack:
        name, rest = stack[-1]
        target = next((other for other in rest if other not in seen), None)
        if target is None:
            stack.pop()
            levels -= depths[name]
            continue
        seen.add(target)
        levels += depths[target]
        if levels > MAX_REFERENCE_LEVELS:
            raise too_large(where, paths[target], f"references through more than {MAX_REFERENCE_LEVELS} levels")
        stack.append((target, iter(references[target])))


def too_large(where: str, path: str, what: str) -> ApiError:
    """Make the error for a schema beyond a limit. ``path`` is a JSON pointer."""
    return ApiError(400, f"the schema of {where} is too large at {shown(path)}: {what}; send a smaller one")


def shown(path: str) -> str:
    """Shorten a JSON pointer for a message."""
    return "#" + (path if len(path) <= 160 else f"{path[:100]}…{path[-50:]}")


def check_combinations(made: Mapping[str, Any], where: str) -> None:
    """Bound the products of option lists that hold together: in allOf, and beside each other in one schema."""
    known: dict[str, int] = {}

    def ways(node: Any, path: str, within: tuple[str, ...]) -> int:
        if not isinstance(node, Mapping):
            return 1
        product, lists = 1, 0
        for key in ("anyOf", "oneOf"):
            if isinstance(options := node.get(key), list):
                product *= sum(ways(option, path, within) for option in options)
                lists += 1
        if isinstance(parts := node.get("allOf"), list):
            for part in parts:
                product *= ways(part, path, within)
                lists += 1
        if isinstance(reference := node.get("$ref"), str):
            name = reference.removeprefix("#/$defs/")
            if name not in known and name not in within:
                known[name] = ways(made[name], name, (*within, name))
            product *= known.get(name, 1)
            lists += 1
        if lists > 1 and product > MAX_COMBINATIONS:
            raise too_large(where, path, f"{product} combinations of options, at most {MAX_COMBINATIONS}")
        return min(product, 10**9)

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            ways(node, path, ())
            for key, value in node.items():
                if key not in ("enum", "const", "required", "type"):
                    walk(value, f"{path}/{key}")
        elif isinstance(node, list):
            for i, value in enumerate(node):
                walk(value, f"{path}/{i}")

    for name, node in made.items():
        walk(node, f"/$defs/{name}" if name else "")
