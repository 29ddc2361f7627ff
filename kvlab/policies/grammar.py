"""Read modules from their specs: ``name``, ``name:key=value,...``, and wrappers, ``name(inner):key=value,...``.

A wrapper's modules stand in parentheses, in the order of its fields; each is a spec of its own:
``adakv(snapkv:budget=0.3):alpha=0.2``, ``blend(snapkv:budget=0.3,window=8,knorm)``.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import typing
from typing import Any

from kvlab.errors import PolicyError
from kvlab.policies.slots import Module, field_kinds, inner_fields, known_modules

OPEN, CLOSE = "(", ")"


def parse_module(text: str) -> Module:
    """Read one module's spec.

    Raises:
        PolicyError: unknown name, unknown parameter, a value of the wrong kind, or a wrong module in parentheses.
    """
    name, inside, rest = _parts(text.strip())
    modules = known_modules()
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PolicyError(f"unknown policy '{name}': {hint}known are {', '.join(sorted(modules))}")
    cls = modules[name]
    values: dict[str, Any] = _inner_modules(cls, inside)
    kinds = field_kinds(cls)
    fields = [field.name for field in dataclasses.fields(cls) if field.name not in inner_fields(cls)]
    for item in filter(None, split_top_level(rest, ",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if key in inner_fields(cls):
            raise PolicyError(f"policy '{name}' takes '{key}' in parentheses: write {name}({value.strip() or 'NAME'})")
        if not equals or key not in fields:
            takes = ", ".join(fields) or "no parameters"
            raise PolicyError(f"policy '{name}' has no parameter '{item.strip()}': it takes {takes}, as key=value")
        if key in values:
            raise PolicyError(f"policy '{name}' is given '{key}' twice")
        values[key] = read_value(name, key, value.strip(), kinds[key])
    missing = [field.name for field in dataclasses.fields(cls) if _is_required(field) and field.name not in values]
    if missing:
        raise PolicyError(f"policy '{name}' needs {missing[0]}: write {name}:{missing[0]}=VALUE")
    return cls(**values)


def split_specs(text: str) -> list[str]:
    """Split a list of specs at its commas, without those in parentheses.

    A comma starts a new spec unless a ``key=`` follows it: that is the next parameter of the spec before. Raises
    PolicyError for a parameter of no spec, or parentheses that do not match.
    """
    specs: list[str] = []
    for item in split_top_level(text, ","):
        if not re.match(r"\s*\w+\s*=", item):
            specs.append(item)
        elif specs:
            specs[-1] += f",{item}"
        else:
            raise PolicyError(f"'{item.strip()}' sets a parameter of no policy; write name:{item.strip()}")
    return [spec.strip() for spec in specs]


def split_top_level(text: str, mark: str) -> list[str]:
    """Split at a mark outside parentheses. Raises PolicyError for parentheses that do not match."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter == OPEN) - (letter == CLOSE)
        if depth < 0:
            break
        if letter == mark and depth == 0:
            items.append("")
        else:
            items[-1] += letter
    if depth:
        raise PolicyError(f"the parentheses of '{text.strip()}' do not match: write name(inner):key=value")
    return items


def is_balanced(text: str) -> bool:
    """Return whether every parenthesis has its other one."""
    try:
        split_top_level(text, ",")
    except PolicyError:
        return False
    return True


def read_value(name: str, key: str, text: str, kind: Any) -> Any:
    """Convert a parameter's text to its declared type: bool, int, float, ``int | float``, str, or one of these or None.

    Raises:
        PolicyError: the text is of another type.
    """
    options = typing.get_args(kind) or (kind,)
    if text.lower() == "none" and type(None) in options:
        return None
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for option in (int, float, str):
        if option not in options:
            continue
        try:
            return option(text)
        except ValueError:
            continue
    names = {bool: "true or false"}
    wanted = " or ".join(names.get(option, option.__name__) for option in options if option is not type(None))
    raise PolicyError(f"policy '{name}' cannot read {key}={text}: it takes a value of type {wanted}")


def _parts(text: str) -> tuple[str, str | None, str]:
    """Name, content of the parentheses (None without any), and parameters of a spec."""
    split_top_level(text, ",")  # parentheses match
    head = re.match(r"[^:(]*", text)
    name, left = (head[0].strip(), text[head.end() :]) if head else ("", text)
    if not left.startswith(OPEN):
        return name, None, left[1:]
    depths = itertools.accumulate((letter == OPEN) - (letter == CLOSE) for letter in left)
    end = next(at for at, depth in enumerate(depths) if depth == 0)
    inside, after = left[1:end], left[end + 1 :].strip()
    if after and not after.startswith(":"):
        raise PolicyError(f"cannot read '{after}' behind '{name}({inside})': write {name}({inside}):key=value")
    return name, inside, after[1:]


def _inner_modules(cls: type[Module], inside: str | None) -> dict[str, Any]:
    """The modules in a wrapper's parentheses, by field. Raises PolicyError where they are not those it takes."""
    wanted = inner_fields(cls)
    if inside is not None and not wanted:
        raise PolicyError(f"policy '{cls.name}' wraps no other: write {cls.name}, or {cls.name}:key=value")
    if inside and len(split_top_level(inside, "|")) > 1:
        first, *others = (part.strip() for part in split_top_level(inside, "|"))
        raise PolicyError(f"policy '{cls.name}' wraps single policies: write {cls.name}({first})|{'|'.join(others)}")
    specs = [spec for spec in split_specs(inside or "") if spec]
    if len(specs) > len(wanted):
        raise PolicyError(f"policy '{cls.name}' wraps {len(wanted)}, not {len(specs)}: '{inside}'")
    values: dict[str, Any] = {}
    for (field, kind), spec in zip(wanted.items(), specs, strict=False):
        values[field] = parse_module(spec)
        if not isinstance(values[field], kind):
            fitting = _names_of(kind)
            raise PolicyError(f"policy '{cls.name}' cannot wrap '{spec}': it wraps one of {fitting}")
    for one in dataclasses.fields(cls):
        if one.name in wanted and one.name not in values and _is_required(one):
            fitting = _names_of(wanted[one.name])
            raise PolicyError(f"policy '{cls.name}' wraps another: write {cls.name}(NAME), with one of {fitting}")
    return values


def _names_of(kind: type[Module]) -> str:
    return ", ".join(sorted(name for name, cls in known_modules().items() if issubclass(cls, kind)))


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
