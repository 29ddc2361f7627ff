"""The designs that stand side by side: six systems, each as released and as the article has it, and kvlab's own."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from kvlab.systems import System
from kvlab.systems.registry import default_engine, system_names

KVLAB = "tiered"
NO_CACHE = "full"
NOW, ARTICLE = "now", "article"
TITLES = {
    "ollama": "Ollama",
    "lm-studio": "LM Studio",
    "llama.cpp": "llama.cpp",
    "mlx-lm": "mlx-lm",
    "omlx": "oMLX",
    "vmlx": "vMLX",
    KVLAB: "kvlab `tiered`",
}
"""The columns, in the article's order."""


@dataclass(frozen=True)
class Design:
    """One system in one variant and engine, or a policy under kvlab's own loop (then both are empty)."""

    name: str
    variant: str = ""
    engine: str = ""

    def __str__(self) -> str:
        head = {"variant": self.variant} if self.variant == ARTICLE else {}
        if self.engine and self.engine != default_engine(self.name, self.variant):
            head["engine"] = self.engine
        given = ",".join(f"{key}={value}" for key, value in head.items())
        return f"{self.name}:{given}" if given else self.name


@functools.cache
def of_system(name: str, variant: str) -> Design:
    """Return a system's design in a variant, with the engine that the name alone means."""
    return Design(name, variant, default_engine(name, variant))


@functools.cache
def asked_for() -> tuple[Design, ...]:
    """Return the designs that the table must have: every system as released and as in the article, and `tiered`."""
    found = [of_system(name, variant) for name in TITLES if name != KVLAB for variant in (NOW, ARTICLE)]
    return (*found, Design(KVLAB))


@functools.cache
def design_of(candidate: str) -> Design:
    """Return the design of a candidate's text; options such as ``context=1024`` leave it the same design."""
    if candidate.partition(":")[0] not in system_names():
        return Design(candidate)
    system = System.parse(candidate)
    return Design(system.name, system.variant, system.engine)
