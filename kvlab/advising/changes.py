"""What would change the choice: the same ranking with one condition changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvlab.advising.agents import AgentWorkload
from kvlab.advising.designs import SizedDesign
from kvlab.advising.errors import AdviceError
from kvlab.advising.judging import Ranking

MORE_AGENTS, MEMORY_FACTOR = 4, 4
MOST_TOKENS = 2_000_000
"""Prompt tokens of a changed workload; larger ones are left out, to answer soon."""


@dataclass(frozen=True)
class Conditions:
    """What a choice rests on.

    Attributes:
        make: returns the workload for a number of agents and restarts; agents are None where they are as they are.
    """

    make: Callable[[int | None, int], AgentWorkload]
    workload: AgentWorkload
    memory: int
    ssd: int
    lossy: bool


@dataclass(frozen=True)
class Change:
    """A condition, in words, and what would be chosen under it; ``choice`` is empty where nothing fits."""

    condition: str
    choice: str
    differs: bool


def changed(
    conditions: Conditions, kind: str, decide: Callable[[Conditions], Ranking | None], *, can_add_agents: bool
) -> list[Change]:
    """Return what would be chosen under each changed condition; ``differs`` where it is of another kind.

    Args:
        kind: that of the choice as it is.
        decide: ranks designs under conditions; None where there is no answer.
    """
    found = []
    for text, one in _conditions(conditions, can_add_agents=can_add_agents):
        try:
            ranking = decide(one)
        except AdviceError:
            found.append(Change(text, "", True))
            continue
        choice = ranking.choice if ranking is not None else None
        if choice is None:
            found.append(Change(text, "", True))
        else:
            found.append(Change(text, choice.name, choice.design.kind != kind or choice.design.is_lossy))
    return found


def _conditions(own: Conditions, *, can_add_agents: bool) -> Iterator[tuple[str, Conditions]]:
    workload = own.workload
    if workload.restarts:
        yield "no restarts", _with(own, workload=dataclasses.replace(workload, restarts=0))
    elif min(len(requests) for requests in workload.by_agent().values()) > 1:
        yield "one restart", _with(own, workload=dataclasses.replace(workload, restarts=1))
    if can_add_agents:
        more = MORE_AGENTS * workload.agents
        tokens = sum(len(request.prompt) for request in workload.requests)
        if MORE_AGENTS * tokens <= MOST_TOKENS:
            yield f"{more} agents", _with(own, workload=own.make(more, workload.restarts))
    yield "a quarter of the memory", _with(own, memory=own.memory // MEMORY_FACTOR)
    if own.ssd:
        yield "no SSD", _with(own, ssd=0)
    if not own.lossy:
        yield "answers that may differ a little (--lossy)", _with(own, lossy=True)


def _with(own: Conditions, **values: object) -> Conditions:
    return dataclasses.replace(own, **values)  # type: ignore[arg-type]


def representatives(ranking: Ranking, designs: Sequence[SizedDesign]) -> set[str]:
    """Return the keys of designs that stand for their family: the best of each kind, and the choice."""
    names: set[str] = set()
    for one in ranking.judged:
        if one.design.kind not in {key.partition("/")[0] for key in names}:
            names.add(design_key(one.design))
    if ranking.choice is not None:
        names.add(design_key(ranking.choice.design))
    return names


def design_key(design: SizedDesign) -> str:
    """Return what a design is without its sizes: equal for the same design under other conditions."""
    candidate = design.candidate
    what = f"{type(candidate).__name__}:{design.policy.tiers.name if design.policy.tiers else ''}"
    return f"{design.kind}/{what}:{design.policy.codec}"
