"""``Description``: a workload of agents in a few numbers, and the token ids that stand for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from kvlab.advising.agents import AgentRequest, AgentWorkload
from kvlab.advising.errors import AdviceError
from kvlab.counts import counted

LEAST_VOCABULARY = 64
"""Token ids from which texts are drawn: with fewer, texts that differ would often begin alike."""


@dataclass(frozen=True)
class Description:
    """Agents of one kind. All begin with the same system prompt, and append to their history.

    Args:
        agents: that work at the same time.
        sessions: conversations of each agent, one after the other.
        turns: requests of the user in a conversation.
        system_tokens: of the system prompt and the tools, the same in every conversation.
        turn_tokens: of a user's message, or of a tool's result.
        answer_tokens: of an answer, or of a call.
        tool_calls: calls in a turn; each is a request more, with a result behind it.
        think_tokens: generated before each answer, and left out of the history.
        restarts: of the server while all this goes on.
        pause_s: seconds between an answer and the user's next message; tools answer at once.

    Raises:
        AdviceError: a number below its least.
    """

    agents: int = 1
    sessions: int = 1
    turns: int = 15
    system_tokens: int = 1500
    turn_tokens: int = 120
    answer_tokens: int = 60
    tool_calls: int = 0
    think_tokens: int = 0
    restarts: int = 0
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        least = dict.fromkeys(("agents", "sessions", "turns", "turn_tokens", "answer_tokens"), 1)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value < least.get(field.name, 0):
                raise AdviceError(f"{field.name}={value} is too small: write {least.get(field.name, 0)} or more")

    def __str__(self) -> str:
        parts = [
            counted(self.agents, "agent"),
            counted(self.sessions, "conversation") + " each" if self.sessions > 1 else "",
            counted(self.turns, "turn") + (f" with {counted(self.tool_calls, 'tool call')}" if self.tool_calls else ""),
            f"system prompt of {counted(self.system_tokens, 'token')}",
            f"{self.turn_tokens:,} more a turn and {self.answer_tokens:,} an answer",
            f"{self.think_tokens:,} of thinking" if self.think_tokens else "",
            counted(self.restarts, "restart") if self.restarts else "no restart",
        ]
        return ", ".join(filter(None, parts))

    def workload(self, *, vocabulary: int = 2048, avoid: Collection[int] = (), seed: int = 0) -> AgentWorkload:
        """Return requests of these lengths, in ids below ``vocabulary`` that are not in ``avoid``."""
        ids = np.array([one for one in range(vocabulary) if one not in avoid], np.int64)
        if len(ids) < LEAST_VOCABULARY:
            raise AdviceError(f"a vocabulary of {len(ids)} is too small: {LEAST_VOCABULARY} ids are needed")
        draw = np.random.default_rng(seed)

        def text(tokens: int) -> tuple[int, ...]:
            return tuple(draw.choice(ids, tokens).tolist())

        system, requests = text(self.system_tokens), []
        for agent in range(self.agents):
            for _ in range(self.sessions):
                history = system
                for turn in range(1, self.turns * (self.tool_calls + 1) + 1):
                    prompt = history + text(self.turn_tokens)
                    thought, said = text(self.think_tokens), text(self.answer_tokens)
                    is_users = (turn - 1) % (self.tool_calls + 1) == 0
                    pause = self.pause_s if is_users else 0.0
                    requests.append(AgentRequest(f"agent-{agent}", turn, prompt, thought + said, pause))
                    history = prompt + said
        return AgentWorkload(str(self), tuple(requests), self.restarts)
