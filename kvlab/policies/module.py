"""What a policy module is: a frozen dataclass that fills one slot and writes itself as ``name:key=value,...``."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvlab.errors import PolicyError

if TYPE_CHECKING:
    from kvlab.policies.policy import Policy

SLOTS = ("retention", "reuse", "codec", "tiers")


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
        from kvlab.policies.policy import Policy

        return Policy(self) | other

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
