"""``Probe``: one question to a server; ``Lab``: what a probe works with. Add a probe as a file in ``probes/``."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from kvlab.audit.client import AuditClient, Message, Reply
from kvlab.audit.curve import CachedEstimate, ColdCurve
from kvlab.audit.errors import AuditError
from kvlab.audit.finding import Finding
from kvlab.audit.material import Material, as_plain_turns, count_words, shared_part, tool_turn, user

DEFAULT_TOKENS = 512

UNSURE_SHARE = 0.25
"""Of a prompt: an inference with a larger standard error says nothing."""


@dataclass(frozen=True)
class Observation:
    """One answered request of a probe.

    Attributes:
        size: Prompt tokens that the server counted; words where it counts none.
        reported: Cached tokens that the server reports; None where it reports none at all.
        inferred: Cached tokens that the TTFT stands for; None without a curve.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...]
    reply: Reply
    size: int
    reported: int | None
    inferred: CachedEstimate | None

    @property
    def cached(self) -> float | None:
        """Cached tokens: those reported, else those inferred; None without either."""
        if self.reported is not None:
            return float(self.reported)
        return self.inferred.tokens if self.inferred is not None else None

    def shared_with(self, earlier: Observation) -> float:
        """Return how much of this prompt an earlier one began with, in the unit of its size, to a few percent."""
        part = shared_part(self.messages, earlier.messages, self.tools, earlier.tools)
        return min(part * self.size, self.size - 1)

    @property
    def is_known(self) -> bool:
        """Whether the cached tokens are known well enough for a verdict."""
        if self.reported is not None:
            return True
        return self.inferred is not None and self.inferred.error <= UNSURE_SHARE * self.size

    @property
    def saved_share(self) -> float | None:
        """Tokens that the TTFT saved, by the curve, over those reported as cached; None without both."""
        return self.inferred.tokens / self.reported if self.inferred is not None and self.reported else None

    @property
    def source(self) -> str:
        """How the cached tokens are known, for the detail of a finding."""
        if self.reported is not None:
            return "reported"
        if self.inferred is None:
            return "not reported"
        return f"inferred from the TTFT, ± {self.inferred.error:.0f}"


@dataclass
class Lab:
    """What a probe works with: the client, texts, the curve of cold prompts, and what the user has given.

    Attributes:
        tokens: Size of a typical prompt; every probe takes parts or multiples of it.
        curve: None until it is fitted, and where it cannot be.
        restart: Shell command that stops and starts the server; None where the user gave none.
        kill: Shell command that kills the server, as ``kill -9`` does, and starts it; None where the user gave none.
        reports_cached: Whether the server has reported cached tokens; decided before the first probe runs.
        counts_tokens: Whether the server reports ``usage.prompt_tokens``; else sizes are in words.
        observations: All that probes have observed, in order.
        seconds: How long the curve and each probe took, by name; the question afterwards counts.
    """

    client: AuditClient
    material: Material
    tokens: int = DEFAULT_TOKENS
    curve: ColdCurve | None = None
    restart: str | None = None
    kill: str | None = None
    reports_cached: bool = False
    counts_tokens: bool = True
    clock: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep
    observations: list[Observation] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Unit of sizes."""
        return "tokens" if self.counts_tokens else "words"

    def ask(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **fields: Any,
    ) -> Reply:
        """Return the server's answer. Raises AuditError where it has none."""
        reply = self.client.chat(messages, max_tokens=max_tokens, tools=tools, **fields)
        if not reply.is_complete:
            status = f"status {reply.status}: " if reply.status not in (0, 200) else ""
            raise AuditError(f"the server gave no answer: {status}{reply.error}")
        return reply

    def observe(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **fields: Any,
    ) -> Observation:
        """Ask, and return the answer with its size and its cached tokens. Raises AuditError where there is none."""
        reply = self.ask(messages, max_tokens=max_tokens, tools=tools, **fields)
        size = self.size(messages, reply, tools)
        reported = (reply.cached_tokens or 0) if self.reports_cached else None
        inferred = self.curve.cached(size, reply.ttft_s) if self.curve is not None else None
        seen = Observation(tuple(messages), tuple(tools or ()), reply, size, reported, inferred)
        self.observations.append(seen)
        return seen

    def size(self, messages: Sequence[Message], reply: Reply, tools: Sequence[Mapping[str, Any]] | None = None) -> int:
        """Return the prompt's size in :attr:`unit`."""
        if self.counts_tokens and reply.prompt_tokens is not None:
            return reply.prompt_tokens
        return count_words(messages, tools or ())

    def text(self, label: str, share: float = 1.0) -> str:
        """Return text of about this share of a usual prompt; another label gives another text."""
        return self.material.text(label, max(1, round(share * self.tokens)))

    def history(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages as they are, or without ``tool`` messages where the server takes none."""
        return list(messages) if self.takes_tool_messages else as_plain_turns(messages)

    @functools.cached_property
    def takes_tool_messages(self) -> bool:
        """Whether the server's template takes calls and results of tools as messages; the first use asks it."""
        asked = [user("Look it up."), *tool_turn("search", "it", "Nothing was found.", "call_0")]
        return self.client.chat(asked, max_tokens=1).is_complete


class Probe(ABC):
    """One question to a server.

    A concrete subclass in ``probes/`` is known to the runner by being there. Its findings carry its ``name``.

    Attributes:
        about: One line for lists.
        order: Probes run by it, lowest first: 0 to 99 those of the cache, from 100 on those of the service.
        needs: What the user must have given, such as ``restart``; without it the probe is skipped and says so.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    order: ClassVar[int]
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def run(self, lab: Lab) -> Iterator[Finding]:
        """Yield findings. What was found before an error is kept; the error becomes a finding ``unknown``."""


def all_probes() -> list[Probe]:
    """Return one of each known probe, in the order in which they run."""
    _read_folder()
    pending, found = list(Probe.__subclasses__()), []
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if "name" in cls.__dict__:
            found.append(cls())
    return sorted(found, key=lambda probe: (probe.order, probe.name))


def choose_probes(names: Sequence[str]) -> list[Probe]:
    """Return the probes of these names; all without any. Raises AuditError for an unknown name."""
    known = {probe.name: probe for probe in all_probes()}
    for name in names:
        if name not in known:
            raise AuditError(f"no probe '{name}'; there are {', '.join(known)}")
    return [probe for probe in known.values() if not names or probe.name in names]


@functools.cache
def _read_folder() -> None:
    """Import all files of ``probes/``: a probe is known once its class is defined."""
    from kvlab.audit import probes

    for file in pkgutil.iter_modules(probes.__path__):
        importlib.import_module(f"{probes.__name__}.{file.name}")
