"""The four slots, and the modules that fill them."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvlab.errors import PolicyError

if TYPE_CHECKING:
    from kvlab.policies.policy import Policy

SLOTS = ("retention", "reuse", "codec", "tiers")
"""The slots, in the order of specs and listings."""

LOSSY_SLOTS = ("retention", "codec")
"""The slots whose modules can change what the model computes."""

DEFAULTS = {"retention": "full", "reuse": "none", "codec": "raw"}
"""Names of the modules of empty slots; there are no tiers by default."""


@dataclass(frozen=True)
class Module:
    """One choice of a policy. A subclass gives its name, its slot and its paper, and checks its parameters.

    A concrete subclass sets ``name`` and is from then on known to :func:`registry` and to the spec grammar; no other
    registration is needed. A field of a module type makes it a wrapper: ``name(inner):key=value``. ``is_lossless`` says
    that a retention or codec changes neither keys and values nor which of them are visible; ``encodes_groups``, that a
    codec encodes several rows together; ``uses_tiers``, that a reuse keeps its KV in the tiers of the policy.
    """

    name: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    is_lossless: ClassVar[bool] = False
    encodes_groups: ClassVar[bool] = False
    uses_tiers: ClassVar[bool] = True

    def __or__(self, other: Module | Policy | str) -> Policy:
        from kvlab.policies.policy import Policy  # which imports this module

        return Policy(self) | other

    def __ror__(self, other: str) -> Policy:
        from kvlab.policies.policy import Policy

        return Policy.parse(other) | self

    @property
    def stored_block(self) -> int | None:
        """Tokens of the only blocks that a retention's KV can be stored in; None where blocks may have any size."""
        return None

    def check(self, policy: Policy) -> None:
        """Raise PolicyError where this module cannot work with the others of ``policy``."""
        if not self.encodes_groups:
            return
        if policy.reuse.name != "none":
            raise PolicyError(
                f"'{self}' encodes rows in groups, which '{policy.reuse}' cannot store or share: use it without reuse"
            )
        if not policy.retention.is_lossless:
            raise PolicyError(
                f"'{self}' encodes rows in groups, of which '{policy.retention}' drops single ones: use it with full"
            )

    def spec(self) -> str:
        """Return ``name``, or ``name:key=value,...`` with the parameters that differ from their defaults."""
        return self.written([f for f in dataclasses.fields(self) if getattr(self, f.name) != f.default], Module.spec)

    def __str__(self) -> str:
        return self.spec()

    @property
    def storage_key(self) -> str:
        """This module's part of the block key; empty where it does not change the KV of a prompt.

        For a lossy retention or codec it is the whole spec, so that another policy never gets its blocks.
        """
        changes = self.slot in LOSSY_SLOTS and not self.is_lossless
        return self.full_spec() if changes else ""

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring; empty where there is none."""
        return next(iter((cls.__doc__ or "").strip().splitlines()), "")

    def full_spec(self) -> str:
        """Return ``name:key=value,...`` with all parameters, so that a later change of defaults does not change it."""
        return self.written(dataclasses.fields(self), lambda module: module.full_spec())

    def written(self, fields: Iterable[dataclasses.Field[Any]], write: Callable[[Module], str]) -> str:
        """Return the spec with these fields; where a module in parentheses is among them, all are written."""
        inner = [getattr(self, name) for name in inner_fields(type(self))]
        given = [field for field in fields if field.name not in inner_fields(type(self))]
        has_inner = len(given) < len(list(fields))
        inside = ",".join(write(module) for module in inner if module is not None) if has_inner else ""
        pairs = ",".join(f"{field.name}={format_value(getattr(self, field.name))}" for field in given)
        return self.name + (f"({inside})" if inside else "") + (f":{pairs}" if pairs else "")


@dataclass(frozen=True)
class ModuleInfo:
    """A row of ``kvlab policies``: a module, its defaults, its paper and the first line of its docstring."""

    name: str
    slot: str
    parameters: dict[str, Any]
    paper: str
    summary: str


def check_name(module: Module) -> None:
    """Raise PolicyError for a module whose class has no name of its own: its spec and key would be another's."""
    cls = type(module)
    if not cls.__dict__.get("name"):
        raise PolicyError(
            f"{cls.__name__} has no name of its own, and would pass for '{module.name}': "
            'give the class a line such as name: ClassVar[str] = "mine"'
        )


def field_kinds(cls: type[Module]) -> dict[str, Any]:
    """Return the declared types of a module's fields. Raises PolicyError where one cannot be resolved."""
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise PolicyError(
            f"the types of '{cls.name}' cannot be read ({error}): define or import them at the top of its file"
        ) from error


def inner_fields(cls: type[Module]) -> dict[str, type[Module]]:
    """Return the fields of a wrapper that hold modules, with the module type that each takes, in their order."""
    return _inner_fields(typing.cast(Any, cls))


@functools.cache
def _inner_fields(cls: Any) -> dict[str, type[Module]]:
    kinds = field_kinds(cls)
    found: dict[str, type[Module]] = {}
    for name in (field.name for field in dataclasses.fields(cls)):
        for option in typing.get_args(kinds[name]) or (kinds[name],):
            if isinstance(option, type) and issubclass(option, Module):
                found[name] = option
    return found


def known_modules() -> dict[str, type[Module]]:
    """Return all concrete module classes that are defined, by name.

    The last definition of a name counts, so that a notebook cell which defines a module can be run again.
    """
    found: dict[str, type[Module]] = {}
    pending: list[type[Module]] = list(Module.__subclasses__())
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        if cls.__dict__.get("name"):
            found[cls.name] = cls
    return found


def registry() -> list[ModuleInfo]:
    """Return the known modules, by slot and then in order of definition."""
    infos = [
        ModuleInfo(
            name,
            cls.slot,
            {field.name: _shown_default(field) for field in dataclasses.fields(cls)},
            cls.paper,
            cls.summary(),
        )
        for name, cls in known_modules().items()
    ]
    return sorted(infos, key=lambda info: SLOTS.index(info.slot))


def format_value(value: Any) -> str:
    """Return a parameter's text in a spec; a whole float keeps its point, so that 1.0 is not read as 1."""
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)


def _shown_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else str(field.default_factory())
    return str(field.default) if isinstance(field.default, Module) else field.default
