"""Judges designs on a workload: what each costs in the simulation, which fit, which tie, which is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvlab.advising.agents import AgentWorkload, shared_by_all
from kvlab.advising.designs import Need, SizedDesign, TokenBytes
from kvlab.advising.replay import replay_of
from kvlab.advising.simulation import LoopSimulation, Simulated
from kvlab.counts import counted
from kvlab.policies import NoReuse, Slots, Snapshot, Tiered, WholePrompts, parse_bytes
from kvlab.speed import Speed

TIE_SHARE = 0.10
"""Designs whose waits differ by at most so much of the least are told apart by simplicity: the simulation is no better.

Held against measurements by the tests of ``experiments/advise``.
"""
MEMORY_TOLERANCE = 1.02
"""Sizes are rounded, and blocks and rows are allocated in whole steps."""


@dataclass(frozen=True)
class Judged:
    """One design on the workload.

    Attributes:
        wait_s: times to first token of all requests together.
        p95_s: the wait that 95 of 100 requests do not exceed.
        restart_s: the mean wait of the first requests after a restart; None without one.
        again: tokens a request that were known before and are computed again.
        agents_that_fit: agents whose whole KV stays, so that none computes another's place anew.
        why_not: why it cannot be chosen; empty where it can.
    """

    design: SizedDesign
    wait_s: float
    p95_s: float
    restart_s: float | None
    again: float
    agents_that_fit: int
    memory_bytes: int
    ssd_bytes: int
    written: int
    refused: int
    why_not: str = ""

    @property
    def name(self) -> str:
        """The candidate's text."""
        return str(self.design.candidate)

    @property
    def fits(self) -> bool:
        """Whether it can be chosen."""
        return not self.why_not

    def row(self) -> dict[str, Any]:
        """Return its numbers by metric, with their units."""
        return {
            "ttft_total_ms": (1e3 * self.wait_s, "ms"),
            "ttft_p95_ms": (1e3 * self.p95_s, "ms"),
            "ttft_after_restart_ms": (None if self.restart_s is None else 1e3 * self.restart_s, "ms"),
            "recomputed_tokens": (self.again, "tokens"),
            "agents_that_fit": (self.agents_that_fit, "agents"),
            "kv_bytes_memory": (self.memory_bytes, "bytes"),
            "kv_bytes_ssd": (self.ssd_bytes, "bytes"),
            "bytes_written": (self.written, "bytes"),
            "refused": (self.refused, "requests"),
        }


@dataclass(frozen=True)
class Ranking:
    """Designs on one workload, the best one first; those that do not fit last. ``ties`` are as good as the best."""

    judged: tuple[Judged, ...]

    @property
    def ties(self) -> tuple[Judged, ...]:
        """Those that fit and whose wait is within TIE_SHARE of the least."""
        fitting = [one for one in self.judged if one.fits]
        if not fitting:
            return ()
        most = (1 + TIE_SHARE) * fitting[0].wait_s
        return tuple(one for one in fitting if one.wait_s <= most)

    @property
    def choice(self) -> Judged | None:
        """The simplest of those that tie; None where nothing fits."""
        return min(self.ties, key=lambda one: one.design.simplicity, default=None)


def rank(
    workload: AgentWorkload, candidates: Sequence[SizedDesign], need: Need, speed: Speed, token_bytes: TokenBytes
) -> Ranking:
    """Simulate every design on the workload, and rank them."""
    known = known_tokens(workload)
    made = [judge(workload, one, need, speed, token_bytes(one.policy), known) for one in candidates]
    return Ranking(tuple(sorted(made, key=lambda one: (not one.fits, one.wait_s, one.design.simplicity))))


def judge(
    workload: AgentWorkload,
    design: SizedDesign,
    need: Need,
    speed: Speed,
    token_bytes: int,
    known: Mapping[tuple[str, int], int],
) -> Judged:
    """Simulate one design. ``known`` is that of :func:`known_tokens`."""
    replay = replay_of(
        design.policy,
        token_bytes,
        ends=workload.ends,
        opening=workload.opening,
        user_opening=workload.user_opening,
    )
    simulated = LoopSimulation(replay, design.config, speed, places=design.places).run(workload)
    served = [turn for turn in simulated.turns if not turn.is_refused]
    waits = np.array([turn.ttft_s for turn in served] or [0.0])
    first = [turn.ttft_s for turn in served if turn.is_first]
    order: dict[str, int] = {}
    again = 0
    for turn in simulated.turns:
        number = order[turn.agent] = order.get(turn.agent, -1) + 1
        again += max(0, known[turn.agent, number] - turn.cached) if not turn.is_refused else 0
    return Judged(
        design,
        float(waits.sum()),
        float(np.percentile(waits, 95)),
        float(np.mean(first)) if first else None,
        again / max(1, len(served)),
        agents_that_fit(design, need, token_bytes, shared_by_all(workload)),
        simulated.memory_bytes,
        simulated.ssd_bytes,
        simulated.written,
        len(simulated.turns) - len(served),
        _why_not(simulated, need),
    )


def _why_not(simulated: Simulated, need: Need) -> str:
    refused = sum(turn.is_refused for turn in simulated.turns)
    if refused:
        return f"refuses {refused} of {counted(len(simulated.turns), 'request')}"
    if simulated.memory_bytes > MEMORY_TOLERANCE * need.memory:
        return f"takes {simulated.memory_bytes / need.memory:.1f} times the memory"
    if simulated.ssd_bytes > MEMORY_TOLERANCE * need.ssd:
        return "takes more SSD than there is"
    return ""


def known_tokens(workload: AgentWorkload) -> dict[tuple[str, int], int]:
    """Return, for each agent and the number of its request, the leading tokens that were read or written before."""
    found: dict[tuple[str, int], int] = {}
    own = workload.by_agent()
    first_of_all = next(iter(own.values()))[0]
    for agent, requests in own.items():
        for number, request in enumerate(requests):
            earlier = [requests[number - 1]] if number else []
            earlier += [first_of_all] if request is not first_of_all else []
            held = [_common(request.prompt, one.prompt + one.reply) for one in earlier]
            found[agent, number] = min(max(held, default=0), len(request.prompt) - 1)
    return found


def agents_that_fit(design: SizedDesign, need: Need, token_bytes: int, shared: int) -> int:
    """Return of how many agents the whole KV stays at rest; ``shared`` tokens of each are the same in all."""
    size, reuse, tiers = max(1, need.longest * token_bytes), design.policy.reuse, design.policy.tiers
    if isinstance(reuse, NoReuse):
        return 0
    if isinstance(reuse, Slots):
        return min(need.memory // size, reuse.n + parse_bytes(reuse.host) // size)
    if isinstance(reuse, WholePrompts):
        return min(need.memory // size, reuse.count)
    held = min(need.memory, parse_bytes(getattr(tiers, "ram", "0")))
    if isinstance(tiers, Tiered | Snapshot):
        held = max(held, parse_bytes(tiers.ssd))  # blocks in memory are on SSD too
    common = shared * token_bytes
    return max(0, held - common) // max(1, size - common)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
