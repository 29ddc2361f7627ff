"""Modules and policies: one choice, and four of them composed with ``|``, written as a spec and read back from it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kvlab.errors import PolicyError

SLOTS = ("retention", "reuse", "codec", "tiers")
DEFAULTS = {"retention": "full", "reuse": "none", "codec": "raw"}
"""What an empty slot means; no tiers by default."""


@dataclass(frozen=True)
class Module:
    """One choice of a policy. A subclass names itself, its slot and its source, and checks its parameters.

    A concrete subclass sets ``name`` and is from then on known to :func:`registry` and to the spec grammar:
    defining the class is all the registration there is.
    """

    name: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    def __or__(self, other: Module | Policy) -> Policy:
        return Policy(self) | other

    def check(self, policy: Policy) -> None:
        """Raise PolicyError where this module cannot work with the others of ``policy``."""

    def spec(self) -> str:
        """``name``, or ``name:key=value,...`` with the parameters that differ from their defaults."""
        pairs = [
            f"{field.name}={format_value(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}:{','.join(pairs)}" if pairs else self.name

    def __str__(self) -> str:
        return self.spec()

    @property
    def at_rest(self) -> str:
        """What this module changes in the KV of a prompt: part of the block key, empty when it changes nothing."""
        return ""


@dataclass(frozen=True)
class ModuleInfo:
    """A row of ``kvlab policies``."""

    name: str
    slot: str
    parameters: dict[str, Any]
    paper: str
    summary: str


def known_modules() -> dict[str, type[Module]]:
    """Every concrete module class that has been defined, by name; of two with one name the later counts, so that a
    notebook cell which defines a policy can be run again."""
    found: dict[str, type[Module]] = {}
    pending: list[type[Module]] = list(Module.__subclasses__())
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if cls.__dict__.get("name"):
            found[cls.name] = cls
    return found


def registry() -> list[ModuleInfo]:
    """The modules that exist, by slot and then in order of definition."""
    infos = [
        ModuleInfo(
            name,
            cls.slot,
            {field.name: field.default for field in dataclasses.fields(cls)},
            cls.paper,
            (cls.__doc__ or "").strip().splitlines()[0],
        )
        for name, cls in known_modules().items()
    ]
    return sorted(infos, key=lambda info: SLOTS.index(info.slot))


def parse_module(text: str) -> Module:
    """Read one module's spec, ``name`` or ``name:key=value,...``.

    Raises:
        PolicyError: unknown name, unknown parameter, or a value of the wrong kind.
    """
    name, _, rest = text.strip().partition(":")
    modules = known_modules()
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise PolicyError(f"unknown policy '{name}': {hint}known are {', '.join(sorted(modules))}")
    cls = modules[name]
    kinds = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or key not in fields:
            takes = ", ".join(fields) or "no parameters"
            raise PolicyError(f"policy '{name}' has no parameter '{item.strip()}': it takes {takes}, as key=value")
        if key in values:
            raise PolicyError(f"policy '{name}' is given '{key}' twice")
        values[key] = read_value(name, key, value.strip(), kinds[key])
    return cls(**values)


def read_value(name: str, key: str, text: str, kind: Any) -> Any:
    """Turn a parameter's text into its declared type: int, float, ``int | float``, str, or one of these or None."""
    options = typing.get_args(kind) or (kind,)
    if text.lower() == "none" and type(None) in options:
        return None
    for option in (int, float, str):
        if option not in options:
            continue
        try:
            return option(text)
        except ValueError:
            continue
    wanted = " or ".join(option.__name__ for option in options if option is not type(None))
    raise PolicyError(f"policy '{name}' cannot read {key}={text}: it takes a value of type {wanted}")


def format_value(value: Any) -> str:
    """A parameter as it stands in a spec; a whole float keeps its point, so that 1.0 is not read back as 1."""
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)


class Policy:
    """An immutable value: what stays live, how it is written, how it is found again, where it rests.

    ``Policy(Paged(block=64), Quantized(bits=4))`` and ``Paged(block=64) | Quantized(bits=4)`` are equal. A slot that
    is not filled has its default: retention ``full``, codec ``raw``, reuse ``none``, no tiers. Tiers without a reuse
    mean ``paged``; ``paged`` without tiers rests in ``ram``.

    Raises:
        PolicyError: two modules for one slot, or choices that cannot work together.
    """

    __slots__ = ("_given",)
    _given: Mapping[str, Module]

    def __init__(self, *modules: Module):
        given: dict[str, Module] = {}
        for module in modules:
            if module.slot in given:
                raise PolicyError(
                    f"two policies for one slot ({module.slot}): '{given[module.slot]}' and '{module}'; keep one"
                )
            given[module.slot] = module
        object.__setattr__(self, "_given", given)
        for module in given.values():
            module.check(self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Policy is immutable: compose a new one with |")

    @staticmethod
    def parse(text: str | Policy | Module) -> Policy:
        """Read a spec such as ``paged:block=64|quantized:bits=4``. A Policy or a Module is returned as a Policy."""
        if isinstance(text, Policy):
            return text
        if isinstance(text, Module):
            return Policy(text)
        if not text.strip():
            raise PolicyError("an empty policy: write a name such as full, paged or tiered")
        return Policy(*(parse_module(part) for part in text.split("|")))

    @property
    def retention(self) -> Module:
        return self._given.get("retention") or default("retention")

    @property
    def codec(self) -> Module:
        return self._given.get("codec") or default("codec")

    @property
    def reuse(self) -> Module:
        return self._given.get("reuse") or (implied("paged") if "tiers" in self._given else default("reuse"))

    @property
    def tiers(self) -> Module | None:
        return self._given.get("tiers") or (None if self.reuse.name == "none" else implied("ram"))

    @property
    def lossless(self) -> bool:
        """True when the policy must give the very tokens of a run with no cache."""
        return (self.retention.name, self.codec.name) == ("full", "raw")

    @property
    def at_rest(self) -> str:
        """The choices that change stored KV, for the block key; empty for exact KV."""
        return "|".join(filter(None, (self.retention.at_rest, self.codec.at_rest)))

    def __or__(self, other: Policy | Module) -> Policy:
        more = other._given.values() if isinstance(other, Policy) else (other,)
        return Policy(*self._given.values(), *more)

    def _resolved(self) -> tuple[Module | None, ...]:
        return tuple(getattr(self, slot) for slot in SLOTS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._resolved() == other._resolved()

    def __hash__(self) -> int:
        return hash(self._resolved())

    def __str__(self) -> str:
        named = {slot: module for slot in SLOTS if (module := getattr(self, slot)) is not None}
        # A choice that the others imply is left out, so that equal policies have one spelling; tiers may imply reuse.
        for slot in ("retention", "codec", "tiers", "reuse"):
            fewer = {key: module for key, module in named.items() if key != slot}
            if Policy(*fewer.values()) == self:
                named = fewer
        return "|".join(module.spec() for module in named.values()) or "full"

    def __repr__(self) -> str:
        return f"Policy('{self}')"

    def __reduce__(self) -> tuple[Any, ...]:
        return Policy, tuple(self._given.values())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td><b>{slot}</b></td><td><code>{module or 'none'}</code></td>"
            f"<td>{(module.__doc__ or '').strip().splitlines()[0] if module else 'nothing is kept at rest'}</td></tr>"
            for slot, module in zip(SLOTS, self._resolved(), strict=True)
        )
        return f"<table><caption><code>{self}</code></caption>{cells}</table>"


def default(slot: str) -> Module:
    """What an empty slot means."""
    return implied(DEFAULTS[slot])


@functools.cache
def implied(name: str) -> Module:
    """A module with its defaults. Policies are asked for theirs at every request, so it is read once."""
    return parse_module(name)
