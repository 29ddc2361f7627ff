"""``System``: the cache design of one server, rebuilt on kvlab's decoder: a policy, decoder settings, and sources."""

from __future__ import annotations

import dataclasses
import html
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kvlab.decoder.config import DecoderConfig
from kvlab.models import LoadedModel
from kvlab.policies import SLOTS, Policy
from kvlab.policies.slots import format_value

VARIANTS = ("now", "article")
"""A system as it is released, and as the article of 2026 describes it that this project began with."""


@dataclass(frozen=True)
class System(ABC):
    """A frozen value. A concrete subclass is one variant of one server, and its fields are options of that server.

    Everything but the cache and the request loop is kvlab's: model, kernels, sampling, protocol. A subclass with a
    ``name`` of its own is known to :meth:`parse` from then on.

    Attributes:
        name: of the server; two variants and two engines share it.
        variant: one of VARIANTS.
        engine: which of the server's engines; empty where it has one.
        release: what the sources were read in.
        leaves_out: what the server does and this value does not, a sentence each.
    """

    name: ClassVar[str] = ""
    variant: ClassVar[str] = "now"
    engine: ClassVar[str] = ""
    release: ClassVar[str] = ""
    leaves_out: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """Which tokens stay, how KV is written and found again, and where it is at rest."""

    @property
    @abstractmethod
    def config(self) -> DecoderConfig:
        """How requests are run."""

    @property
    def queue(self) -> int | None:
        """Requests that may wait behind the running ones; more get status 503. None is no limit."""
        return None

    def for_model(self, model: LoadedModel) -> System:
        """Return this system with every option settled that its server chooses by the model."""
        return self

    @property
    @abstractmethod
    def sources(self) -> Mapping[str, str]:
        """Where each of the ``settings`` was read; that of ``tiers`` stands for ``tiers.ram``, too."""

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its name: slots of the policy, their parameters, and what the request loop does."""
        found: dict[str, Any] = {}
        for slot in SLOTS:
            module = getattr(self.policy, slot)
            found[slot] = module.name if module is not None else "none"
            for field in dataclasses.fields(module) if module is not None else ():
                found[f"{slot}.{field.name}"] = getattr(module, field.name)
        for part in dataclasses.fields(self.config):
            found[part.name] = getattr(self.config, part.name)
        return found | {"queue": self.queue}

    def source(self, setting: str) -> str:
        """Return where a setting was read."""
        return self.sources.get(setting) or self.sources[setting.partition(".")[0]]

    def row(self) -> dict[str, Any]:
        """Return the row of ``kvlab systems --json``."""
        return {
            "system": str(self),
            "variant": self.variant,
            "policy": str(self.policy),
            "settings": self.settings,
            "sources": {name: self.source(name) for name in self.settings},
            "leaves_out": list(self.leaves_out),
        }

    @staticmethod
    def parse(text: str | System) -> System:
        """Read ``omlx``, ``omlx:variant=article`` or ``llama.cpp:parallel=4``; return a System as it is.

        Raises:
            UnknownSystem: an unknown name, variant, engine or option.
        """
        from kvlab.systems.registry import parse_system  # which imports this module

        return parse_system(text)

    def __str__(self) -> str:
        from kvlab.systems.registry import default_engine

        head = {"variant": self.variant} if self.variant != VARIANTS[0] else {}
        head |= {"engine": self.engine} if self.engine != default_engine(self.name, self.variant) else {}
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(self) if self._is_given(part)}
        given = ",".join(f"{key}={format_value(value)}" for key, value in (head | values).items())
        return f"{self.name}:{given}" if given else self.name

    def __repr__(self) -> str:
        return f"System('{self}')"

    def _is_given(self, part: dataclasses.Field[Any]) -> bool:
        return bool(getattr(self, part.name) != part.default)

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td><b>{html.escape(name)}</b></td><td style='text-align:left'><code>"
            f"{html.escape(format_value(value))}</code></td><td style='text-align:left'>"
            f"{html.escape(self.source(name))}</td></tr>"
            for name, value in self.settings.items()
        )
        out = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.leaves_out)
        left = f"<div>Left out:</div><ul>{out}</ul>" if out else ""
        head = f"<code>{html.escape(str(self))}</code> · <code>{html.escape(str(self.policy))}</code>"
        return f"<table><caption>{head}</caption>{cells}</table>{left}"
