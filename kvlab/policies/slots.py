"""The four slots, and the modules that fill them."""

from __future__ import annotations

import dataclasses
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
    registration is needed. ``is_lossless`` says that a retention or codec changes neither keys and values nor which of
    them are visible; ``encodes_groups``, that a codec encodes several rows together.
    """

    name: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    is_lossless: ClassVar[bool] = False
    encodes_groups: ClassVar[bool] = False

    def __or__(self, other: Module | Policy) -> Policy:
        from kvlab.policies.policy import Policy  # which imports this module

        return Policy(self) | other

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
        pairs = [
            f"{field.name}={format_value(getattr(self, field.name))}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}:{','.join(pairs)}" if pairs else self.name

    def __str__(self) -> str:
        return self.spec()

    @property
    def storage_key(self) -> str:
        """This module's part of the block key; empty where it does not change the KV of a prompt.

        For a lossy retention or codec it is the whole spec, so that another policy never gets its blocks.
        """
        changes = self.slot in LOSSY_SLOTS and not self.is_lossless
        return self.full_spec() if changes else ""

    def full_spec(self) -> str:
        """Return ``name:key=value,...`` with all parameters, so that a later change of defaults does not change it."""
        pairs = [f"{field.name}={format_value(getattr(self, field.name))}" for field in dataclasses.fields(self)]
        return f"{self.name}:{','.join(pairs)}" if pairs else self.name


@dataclass(frozen=True)
class ModuleInfo:
    """A row of ``kvlab policies``: a module, its defaults, its paper and the first line of its docstring."""

    name: str
    slot: str
    parameters: dict[str, Any]
    paper: str
    summary: str


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
            {field.name: field.default for field in dataclasses.fields(cls)},
            cls.paper,
            (cls.__doc__ or "").strip().splitlines()[0],
        )
        for name, cls in known_modules().items()
    ]
    return sorted(infos, key=lambda info: SLOTS.index(info.slot))


def format_value(value: Any) -> str:
    """Return a parameter's text in a spec; a whole float keeps its point, so that 1.0 is not read as 1."""
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)
