"""`chat`: a conversation without tools; the user states facts, talks of other things, and asks for the facts later."""

from __future__ import annotations

from random import Random

from kvlab.workloads.base import Message, Workload, WorkloadRequest, assistant, check_count, cut_turns, system, user
from kvlab.workloads.words import NAMES, THINGS, fact, filler, question, value

SYSTEM = "You are a friendly assistant who remembers what the user said."
STATEMENTS = ("Please note: {fact}", "{fact} Keep that in mind.", "For later: {fact}")
SMALL_TALK = (
    ("Hello!", "Hello! How can I help you today?"),
    ("How are you?", "I am well, thank you. What can I do for you?"),
    ("Thank you.", "You are welcome."),
    ("Who are you?", "I am a very small model that remembers names and values."),
    ("What can you do?", "I can remember names and values, and I can call tools."),
    ("Goodbye.", "Goodbye! Have a good day."),
)


class Chat(Workload):
    """`n` conversations of `turns` requests; about half of them ask for a fact that was stated earlier."""

    name = "chat"

    def __init__(self, n: int = 1, seed: int = 0, turns: int = 12) -> None:
        check_count("turns", turns)
        check_count("n", n)
        self.n, self.seed, self.turns = n, seed, turns

    def requests(self) -> list[WorkloadRequest]:
        return [request for i in range(self.n) for request in self._conversation(i)]

    def _conversation(self, index: int) -> list[WorkloadRequest]:
        rng = Random(f"chat/{self.seed}/{index}")
        names = list(NAMES)
        rng.shuffle(names)
        known: list[tuple[str, str, str]] = []
        messages: list[Message] = [system(SYSTEM)]
        kinds: dict[int, str] = {}
        for turn in range(self.turns):
            step = "state" if turn < 3 else rng.choice(("state", "ask", "ask", "talk", "story"))
            if step == "state":
                item = (rng.choice(THINGS), names[turn % len(names)], value(rng))
                known.append(item)
                messages.append(user(rng.choice(STATEMENTS).format(fact=fact(*item))))
                messages.append(assistant(f"Noted: @{item[1]} is {item[2]}."))
            elif step == "ask":
                item = rng.choice(known)
                messages.append(user(question(rng, item[0], item[1])))
                messages.append(assistant(fact(*item)))
                kinds[len(messages) - 1] = "recall"
            elif step == "story":
                messages.append(user(" ".join(filler(rng) for _ in range(rng.randrange(1, 4)))))
                messages.append(assistant("I see. Please go on."))
            else:
                said, reply = rng.choice(SMALL_TALK)
                messages += [user(said), assistant(reply)]
        return cut_turns(f"chat-{index}", messages, kinds)
