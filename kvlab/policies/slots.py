"""The four slots, and the modules that fill them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from kvlab.errors import PolicyError

if TYPE_CHECKING:
    from kvlab.policies.policy import Policy

SLOTS = ("retention", "reuse", "codec", "tiers")


LOSSY_SLOTS = ("retention", "codec")
"""The slots whose modules can change what the model computes."""

DEFAULTS = {"retention": "full", "reuse": "none", "codec": "raw"}
"""What an empty slot means; no tiers by default."""


@dataclass(frozen=True)
class Module:
    """One choice of a policy. A subclass names itself, its slot and its source, and checks its parameters.

    A concrete subclass sets ``name`` and is from then on known to :func:`registry` and to the spec grammar:
    defining the class is all the registration there is. ``is_lossless`` says that a retention or codec leaves keys and
    values, and which of them are seen, as they are; ``encodes_groups``, that a codec writes several rows together.
    """

    name: ClassVar[str] = ""
    slot: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    is_lossless: ClassVar[bool] = False
    encodes_groups: ClassVar[bool] = False

    def __or__(self, other: Module | Policy) -> Policy:
        from kvlab.policies.policy import Policy  # which is built from modules

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
    def storage_key(self) -> str:
        """What this module changes in the KV of a prompt: part of the block key, empty when it changes nothing.

        A lossy choice of retention or codec is keyed by its whole spec, so that its blocks are never handed to another.
        """
        changes = self.slot in LOSSY_SLOTS and not self.is_lossless
        return self.full_spec() if changes else ""

    def full_spec(self) -> str:
        """``name:key=value,...`` with all parameters: what does not change when a default does."""
        pairs = [f"{field.name}={format_value(getattr(self, field.name))}" for field in dataclasses.fields(self)]
        return f"{self.name}:{','.join(pairs)}" if pairs else self.name


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


def format_value(value: Any) -> str:
    """A parameter as it stands in a spec; a whole float keeps its point, so that 1.0 is not read back as 1."""
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)
