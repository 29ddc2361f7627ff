"""The workload `stack-overflow`: facts stated at the beginning, asked for before, at and behind a context limit."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from kvlab.workloads.base import Message, Workload, WorkloadRequest, assistant, check_count, cut_turns, system, user
from kvlab.workloads.chat import STATEMENTS, SYSTEM
from kvlab.workloads.words import NAMES, THINGS, estimate_tokens, fact, filler, question, value

FACTS = 4
WITHIN, AT_LIMIT, BEYOND = 2, 5, 3
"""Questions: soon after the facts, while the conversation grows over the limit, and well behind it."""
STORY_TOKENS = 180
MESSAGE_TOKENS = 6
"""What a chat template puts around a message, nearly."""
AT_LIMIT_FROM = 0.93
"""The share of the limit at which the questions around it begin: five of them grow over the rest."""


class Overflow(Workload):
    """`n` conversations that grow from a few facts to a fourth more than `tokens`, the context limit.

    Only the user's turns that ask for one of the facts are graded; the others state facts or tell stories.
    """

    name = "stack-overflow"

    def __init__(
        self, n: int = 1, seed: int = 0, tokens: int = 1024, count: Callable[[str], int] = estimate_tokens
    ) -> None:
        check_count("n", n)
        check_count("tokens", tokens, least=512)
        self.n, self.seed, self.tokens, self._count = n, seed, tokens, count

    def requests(self) -> list[WorkloadRequest]:
        return [request for i in range(self.n) for request in self._conversation(i)]

    def _conversation(self, index: int) -> list[WorkloadRequest]:
        rng = Random(f"stack-overflow/{self.seed}/{index}")
        facts = [(rng.choice(THINGS), name, value(rng)) for name in rng.sample(NAMES, FACTS)]
        messages: list[Message] = [system(SYSTEM)]
        kinds: dict[int, str] = {}

        def size() -> int:
            return sum(self._count(message["content"]) + MESSAGE_TOKENS for message in messages)

        def ask(times: int) -> None:
            for _ in range(times):
                thing, name, known = rng.choice(facts)
                messages.append(user(question(rng, thing, name)))
                messages.append(assistant(fact(thing, name, known)))
                kinds[len(messages) - 1] = "recall"

        def tell_until(tokens: int) -> None:
            while (left := tokens - size()) > 2 * MESSAGE_TOKENS:
                told = [filler(rng)]
                while self._count(" ".join(told)) < min(left, STORY_TOKENS):
                    told.append(filler(rng))
                messages.append(user(" ".join(told)))
                messages.append(assistant("I see. Please go on."))

        for thing, name, known in facts:
            messages.append(user(rng.choice(STATEMENTS).format(fact=fact(thing, name, known))))
            messages.append(assistant(f"Noted: @{name} is {known}."))
        ask(WITHIN)
        tell_until(int(AT_LIMIT_FROM * self.tokens))
        ask(AT_LIMIT)
        tell_until(self.tokens + self.tokens // 4)
        ask(BEYOND)
        return cut_turns(f"overflow-{index}", messages, kinds)
