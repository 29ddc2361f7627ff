"""Type names of tool catalogues in the words of JSON Schema."""

from __future__ import annotations

import re

_NAMES = {
    "object": "object dict dictionary map hashmap hashtable treemap linkedhashmap record struct json jsonobject "
    "mapping",
    "array": "array list arraylist linkedlist vector set hashset queue deque stack tuple sequence collection iterable "
    "jsonarray",
    "string": "string str text char character varchar charsequence",
    "integer": "integer int long short byte bigint biginteger int8 int16 int32 int64 uint uint8 uint16 uint32 uint64",
    "number": "number float double decimal bigdecimal numeric real float32 float64",
    "boolean": "boolean bool",
    "null": "null none nonetype void",
}
TYPES = {name: standard for standard, names in _NAMES.items() for name in names.split()}
"""The JSON type of each plain name, in lower case. Other names leave the type open."""
_GENERIC = re.compile(r"(\w+)\s*(?:<.*>|\[.*\]\w*|\(.*\))", re.DOTALL)


def json_type(name: object) -> str | None:
    """Return the JSON type that a catalogue means by ``name``, such as ``HashMap`` or ``List<String>``; else None."""
    if not isinstance(name, str):
        return None
    plain = name.strip().lower().removeprefix("java.lang.").removeprefix("java.util.")
    if plain.endswith("[]"):
        return "array"
    if (generic := _GENERIC.fullmatch(plain)) is not None:
        plain = generic.group(1)
    return TYPES.get(plain)
