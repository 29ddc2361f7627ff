"""Requests of agents as token ids: what each asks in order, when the server starts anew, and how long it thinks."""

from __future__ import annotations

from dataclasses import dataclass

from kvlab.advising.errors import AdviceError


@dataclass(frozen=True)
class AgentRequest:
    """One request of an agent, which is sent when the answer to the one before has come and ``pause_s`` have passed.

    Attributes:
        turn: its number in its conversation, from 1.
        prompt: token ids of the whole prompt.
        reply: token ids of the answer, thinking included.
    """

    agent: str
    turn: int
    prompt: tuple[int, ...]
    reply: tuple[int, ...]
    pause_s: float = 0.0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.prompt) + len(self.reply)


@dataclass(frozen=True)
class AgentWorkload:
    """The requests of all agents, each agent's in order; the server is restarted ``restarts`` times meanwhile.

    Attributes:
        text: what it is, in words.
        ends: token ids that end a message; empty where they are not known.
        opening: token ids with which the chat template opens an answer; empty where they are not known.
        user_opening: how many it writes between the end of a message and a user's words.
    """

    text: str
    requests: tuple[AgentRequest, ...]
    restarts: int = 0
    ends: frozenset[int] = frozenset()
    opening: tuple[int, ...] = ()
    user_opening: int = 0

    def __post_init__(self) -> None:
        if not self.requests:
            raise AdviceError("the workload has no requests: give it a turn or more")
        shortest = min(len(own) for own in self.by_agent().values())
        if not 0 <= self.restarts < shortest:
            raise AdviceError(
                f"{self.restarts} restarts do not fit between {shortest} requests of an agent: "
                f"write 0 to {shortest - 1}, or more turns"
            )

    def by_agent(self) -> dict[str, list[AgentRequest]]:
        """Return the requests of each agent, in order."""
        found: dict[str, list[AgentRequest]] = {}
        for request in self.requests:
            found.setdefault(request.agent, []).append(request)
        return found

    def parts(self) -> list[list[list[AgentRequest]]]:
        """Return the requests between two restarts, part by part, a list for each agent; parts are of equal length."""
        own, count = list(self.by_agent().values()), self.restarts + 1
        return [
            [requests[len(requests) * i // count : len(requests) * (i + 1) // count] for requests in own]
            for i in range(count)
        ]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, answer included."""
        return max(request.length for request in self.requests)

    @property
    def agents(self) -> int:
        """Number of agents."""
        return len(self.by_agent())


def shared_by_all(workload: AgentWorkload) -> int:
    """Return how many leading tokens the first requests of all agents have in common; 0 for one agent."""
    firsts: list[tuple[int, ...]] = [own[0].prompt for own in workload.by_agent().values()]
    if len(firsts) < 2:
        return 0
    least, most = min(firsts), max(firsts)
    return next((i for i, (a, b) in enumerate(zip(least, most, strict=False)) if a != b), min(len(least), len(most)))
