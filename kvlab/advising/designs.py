"""The designs that may be advised, with settings that use the memory and the SSD there is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvlab.advising.errors import AdviceError
from kvlab.counts import counted
from kvlab.decoder.config import DecoderConfig
from kvlab.policies import (
    Module,
    NoReuse,
    Paged,
    Policy,
    Quantized,
    Ram,
    Slots,
    Snapshot,
    Tiered,
    WholePrompts,
    format_bytes,
    parse_bytes,
)
from kvlab.systems import Candidate, System, all_systems, config_of, policy_of

ROUNDED_BYTES = 10**6
"""Settings are whole multiples of so many bytes."""
CONTEXT_MULTIPLE_TOKENS = 4096
SPARE_TOKENS = 160
"""Rows that a live sequence may hold, and may grow by at once, besides its tokens."""
LIVE_SHARE = 0.5
"""Most of the memory that kvlab's own designs set aside for live KV."""
SERVED_CONCURRENCY = 32
"""Of ``kvlab serve`` with a policy."""
LOSSY_CODECS: tuple[Module, ...] = (Quantized(bits=8), Quantized(bits=4))
"""Of lossy designs, where nothing says which codecs lose little."""

TokenBytes = Callable[[Policy], int]
"""Returns the bytes of KV a token under a policy's codec."""


@dataclass(frozen=True)
class Need:
    """What a workload needs of settings: agents at once, tokens of its longest request, bytes of memory and SSD."""

    agents: int
    longest: int
    memory: int
    ssd: int


@dataclass(frozen=True)
class SizedDesign:
    """A candidate with its settings, and how the loop runs it; ``live_memory`` is what ``kvlab serve`` is told."""

    candidate: Candidate
    live_memory: int | None = None

    @property
    def policy(self) -> Policy:
        """Its policy."""
        return policy_of(self.candidate)

    @property
    def config(self) -> DecoderConfig:
        """Its decoder settings."""
        own = config_of(self.candidate)
        return own or DecoderConfig(max_concurrency=SERVED_CONCURRENCY, live_memory=self.live_memory)

    @property
    def places(self) -> int | None:
        """Most requests side by side by its reuse; None is no limit."""
        return self.policy.reuse.n if isinstance(self.policy.reuse, Slots) else None

    @property
    def is_lossy(self) -> bool:
        """Whether answers may differ from those without a cache."""
        return not self.policy.lossless

    @property
    def uses_ssd(self) -> bool:
        """Whether KV is at rest on SSD."""
        return isinstance(self.policy.tiers, Tiered | Snapshot)

    @property
    def kind(self) -> str:
        """Which family it is of: no reuse, slots, prompts, blocks in memory, blocks on SSD."""
        return f"{self.policy.reuse.name}{' on ssd' if self.uses_ssd else ''}"

    @property
    def simplicity(self) -> tuple[object, ...]:
        """A key by which simpler designs come first: lossless, less below memory, less to keep, kvlab's own."""
        reuse, tiers = self.policy.reuse, self.policy.tiers
        below = 2 if isinstance(tiers, Snapshot) else 1 if isinstance(tiers, Tiered) else 0
        most = getattr(reuse, "n", getattr(reuse, "count", 0))
        if isinstance(reuse, Slots):
            kept = 1 if parse_bytes(reuse.host) == 0 else 3
        else:
            kept = {NoReuse: 0, WholePrompts: 2, Paged: 4}.get(type(reuse), 5)
        return self.is_lossy, below, kept, most, isinstance(self.candidate, System), str(self.candidate)


def designs(
    need: Need, token_bytes: TokenBytes, *, lossy: bool = False, codecs: Sequence[Module] = LOSSY_CODECS
) -> list[SizedDesign]:
    """Return all designs, sized; those that keep fewer bits, by ``codecs``, only where ``lossy`` allows them.

    Raises AdviceError where memory does not hold the longest request.
    """
    raw = token_bytes(Policy.parse("full"))
    whole = (need.longest + SPARE_TOKENS) * raw
    if whole > need.memory and not lossy:
        raise AdviceError(
            f"the longest request has {counted(need.longest, 'token')}, whose KV takes {format_bytes(whole)}, and the "
            f"memory is {format_bytes(need.memory)}: write --memory {_megabytes(2 * whole)}, or --lossy"
        )
    found = [*_own(need, token_bytes, codecs if lossy else ()), *_systems(need, token_bytes)]
    return [one for one in found if (lossy or not one.is_lossy) and (need.ssd or not one.uses_ssd)]


def _own(need: Need, token_bytes: TokenBytes, codecs: Sequence[Module]) -> Iterator[SizedDesign]:
    """Yield kvlab's own policies, exact ones and those with one of the codecs."""
    yield SizedDesign(Policy.parse("full"), need.memory)
    for codec in (None, *codecs):
        per_token = token_bytes(Policy(codec)) if codec is not None else token_bytes(Policy.parse("full"))
        live = _live(need, per_token, SERVED_CONCURRENCY)
        ram, ssd = _megabytes(need.memory - live), _megabytes(need.ssd)
        tiers: list[Ram | Tiered | Snapshot] = [Ram(ram=ram)]
        if need.ssd:
            tiers += [Tiered(ram=ram, ssd=ssd), Snapshot(ram=ram, ssd=ssd)]
        for one in tiers:
            policy = Policy(Paged(), one) if codec is None else Policy(Paged(), one, codec)
            yield SizedDesign(policy, live)


def _systems(need: Need, token_bytes: TokenBytes) -> Iterator[SizedDesign]:
    """Yield every system in every variant, with those of its options set that size it."""
    for system in all_systems():
        names = {field.name for field in dataclasses.fields(system)}
        per_token = token_bytes(system.policy)
        running = system.config.max_concurrency
        rest = _megabytes(max(0, need.memory - _live(need, per_token, running, most=1.0)))
        values: dict[str, object] = {
            "cache_ram": rest,
            "disk": rest,
            "ram": rest,
            "hot_cache": rest if system.variant == "article" else "0",
            "ssd": _megabytes(need.ssd),
        }
        chosen = {name: value for name, value in values.items() if name in names}
        context = getattr(system, "context", None)
        if context is not None:
            each = context // max(1, getattr(system, "parallel", 1) if system.name == "llama.cpp" else 1)
            if each <= need.longest:
                rounded = -(-(need.longest + 1) // CONTEXT_MULTIPLE_TOKENS) * CONTEXT_MULTIPLE_TOKENS
                chosen["context"] = rounded * (context // each)
        yield SizedDesign(dataclasses.replace(system, **chosen))  # type: ignore[arg-type]


def _live(need: Need, per_token: int, running: int, most: float = LIVE_SHARE) -> int:
    """Return the bytes of live KV of all agents that run at once: at least one, at most this share of the memory."""
    one = (need.longest + SPARE_TOKENS) * per_token
    wanted = min(need.agents, running) * one
    enough = max(one, min(wanted, int(most * need.memory)))
    return -(-enough // ROUNDED_BYTES) * ROUNDED_BYTES


def _megabytes(size: int) -> str:
    return format_bytes(max(0, size) // ROUNDED_BYTES * ROUNDED_BYTES)
