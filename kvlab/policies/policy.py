"""``Policy``: up to four modules composed with ``|``, written as a spec and read from one."""

from __future__ import annotations

import contextlib
import functools
import html
from collections.abc import Iterable, Mapping
from typing import Any

from kvlab.errors import PolicyError
from kvlab.policies.grammar import parse_module, split_top_level
from kvlab.policies.slots import DEFAULTS, SLOTS, Module, check_name


class Policy:
    """An immutable value: which tokens stay live, how KV is written, how it is found again, and where it is at rest.

    ``Policy(Paged(block=64), Quantized(bits=4))`` and ``Paged(block=64) | Quantized(bits=4)`` are equal. A slot that
    is not filled has its default: retention ``full``, codec ``raw``, reuse ``none``, no tiers. Tiers without a reuse
    mean ``paged``; ``paged`` without tiers means ``ram``.

    Raises:
        PolicyError: two modules for one slot, or choices that cannot work together.
    """

    __slots__ = ("_given",)
    _given: Mapping[str, Module]

    def __init__(self, *modules: Module | str):
        given: dict[str, Module] = {}
        for module in (one for part in modules for one in _modules(part)):
            if module.slot in given:
                raise PolicyError(
                    f"two policies for one slot ({module.slot}): '{given[module.slot]}' and '{module}'; keep one"
                )
            check_name(module)
            given[module.slot] = module
        object.__setattr__(self, "_given", given)
        for module in given.values():
            module.check(self)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a Policy is immutable: compose a new one with |")

    @staticmethod
    def parse(text: str | Policy | Module) -> Policy:
        """Read a spec such as ``paged:block=64|quantized:bits=4``; return a Policy, also for a Policy or a Module.

        Raises:
            PolicyError: the spec cannot be read, its modules cannot work together, or it is no policy at all.
        """
        return text if isinstance(text, Policy) else Policy(*_modules(text))

    @property
    def retention(self) -> Module:
        """Which tokens of a live sequence stay."""
        return self._given.get("retention") or default("retention")

    @property
    def codec(self) -> Module:
        """How K and V are written."""
        return self._given.get("codec") or default("codec")

    @property
    def reuse(self) -> Module:
        """How a new request finds earlier KV."""
        return self._given.get("reuse") or (self._implied_reuse() if "tiers" in self._given else default("reuse"))

    def _implied_reuse(self) -> Module:
        """Return paged with blocks that the retention can store."""
        block = self.retention.stored_block
        return implied("paged" if block is None else f"paged:block={block}")

    @property
    def tiers(self) -> Module | None:
        """Where KV is at rest; None without reuse, and where the reuse has a place of its own."""
        has_tiers = self.reuse.name != "none" and self.reuse.uses_tiers
        return self._given.get("tiers") or (implied("ram") if has_tiers else None)

    @property
    def lossless(self) -> bool:
        """Whether the policy must give the same tokens as a run without any cache."""
        return self.retention.is_lossless and self.codec.is_lossless

    @property
    def storage_key(self) -> str:
        """Specs of the modules that change stored KV, for the block key; empty for exact KV."""
        return "|".join(filter(None, (self.retention.storage_key, self.codec.storage_key)))

    def __or__(self, other: Policy | Module | str) -> Policy:
        return Policy(*self._given.values(), *_modules(other))

    def __ror__(self, other: str) -> Policy:
        return Policy(*_modules(other), *self._given.values())

    def _resolved(self) -> tuple[Module | None, ...]:
        return tuple(getattr(self, slot) for slot in SLOTS)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._resolved() == other._resolved()

    def __hash__(self) -> int:
        return hash(self._resolved())

    @property
    def named(self) -> dict[str, Module]:
        """The modules that the spec names, by slot; those that the others imply are left out."""
        named = {slot: module for slot in SLOTS if (module := getattr(self, slot)) is not None}
        # In this order, so that equal policies have one spelling; tiers may imply reuse.
        for slot in ("retention", "codec", "tiers", "reuse"):
            fewer = {key: module for key, module in named.items() if key != slot}
            with contextlib.suppress(PolicyError):  # of a module that needs the one that is left out
                named = fewer if Policy(*fewer.values()) == self else named
        return named

    def __str__(self) -> str:
        return "|".join(module.spec() for module in self.named.values()) or "full"

    def __repr__(self) -> str:
        return f"Policy('{self}')"

    def __reduce__(self) -> tuple[Any, ...]:
        return Policy, tuple(self._given.values())

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td><b>{slot}</b></td><td><code>{html.escape(str(module or 'none'))}</code></td>"
            f"<td>{html.escape(module.summary() if module else 'nothing is kept at rest')}</td></tr>"
            for slot, module in zip(SLOTS, self._resolved(), strict=True)
        )
        return f"<table><caption><code>{html.escape(str(self))}</code></caption>{cells}</table>"


def _modules(part: Any) -> Iterable[Module]:
    """Return the modules of a spec, a policy or a module. Raises PolicyError for anything else."""
    if isinstance(part, Policy):
        return part._given.values()
    if isinstance(part, Module):
        return (part,)
    if isinstance(part, str):
        if not part.strip():
            raise PolicyError("an empty policy: write a name such as full, paged or tiered")
        return tuple(parse_module(one) for one in split_top_level(part, "|"))
    if isinstance(part, type):
        raise PolicyError(f"{part.__name__} is a class: write {part.__name__}() to use it in a policy")
    raise PolicyError(f"{part!r} is no policy: write a spec such as 'paged|quantized', a Policy or a module")


def default(slot: str) -> Module:
    """Return the module of an empty slot."""
    return implied(DEFAULTS[slot])


@functools.cache
def implied(name: str) -> Module:
    """Return a module with its defaults. It is read once, because policies need theirs at every request."""
    return parse_module(name)
