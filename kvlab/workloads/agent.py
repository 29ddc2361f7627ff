"""`agent`: a service agent with a long system prompt and tools; its user returns to earlier results."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from kvlab.workloads.base import Message, Workload, WorkloadRequest, assistant, check_count, cut_turns, system, user
from kvlab.workloads.desk import RULES, TOOLS
from kvlab.workloads.words import NAMES, THINGS, fact, value

LOOKUPS = ("Look up the {thing} of @{name}.", "Please find the {thing} of @{name}.", "Check the {thing} of @{name}.")
CHANGES = ("Set the {thing} of @{name} to {value}.", "Please change the {thing} of @{name} to {value}.")
RECALLS = ("Remind me: what was the {thing} of @{name}?", "You saw it earlier: what was the {thing} of @{name}?")
CHANGEABLE = THINGS[:4]
CYCLE = 5  # call, answer, call, answer, recall


class Agent(Workload):
    """`n` conversations of `turns` requests in the cycle call, answer, call, answer, recall.

    A lookup returns the record that was asked for among its neighbours; a recall asks for any record of an earlier
    lookup than the last one. All conversations share the system prompt and the tools; names and values are random.
    """

    name = "agent"

    def __init__(self, n: int = 1, seed: int = 0, turns: int = 15) -> None:
        check_count("turns", turns)
        check_count("n", n)
        self.n, self.seed, self.turns = n, seed, turns

    def requests(self) -> list[WorkloadRequest]:
        return [request for i in range(self.n) for request in self._conversation(i)]

    def _conversation(self, index: int) -> list[WorkloadRequest]:
        messages, kinds = converse(Random(f"agent/{self.seed}/{index}"), self.turns, RULES, f"{self.seed}_{index}")
        return cut_turns(f"agent-{index}", messages, kinds, TOOLS, max_tokens=48)[: self.turns]


def converse(rng: Random, turns: int, rules: str, label: str) -> tuple[list[Message], dict[int, str]]:
    """Return messages of a conversation of at least `turns` requests, and the kinds of assistant messages by index."""
    unused: list[str] = []
    lookups: list[list[tuple[str, str, str]]] = []
    messages: list[Message] = [system(rules)]
    kinds: dict[int, str] = {}
    for turn in range(0, turns, CYCLE):
        for half in range(2):
            if len(unused) < 5:  # a very long conversation uses names again, and asks for their new records only
                unused = rng.sample(NAMES, len(NAMES))
                lookups.clear()
            change = rng.random() < 0.2 and bool(lookups)
            records = _records(rng, unused, 1 if change else rng.randrange(2, 6), change)
            thing, name, known = rng.choice(records)
            call_id = f"call_{label}_{turn}_{half}"
            wording = rng.choice(CHANGES if change else LOOKUPS)
            arguments = {"handle": f"@{name}", "code": known} if change else {"handle": f"@{name}"}
            messages.append(user(wording.format(thing=thing, name=name, value=known)))
            messages.append(_call(call_id, f"{'set' if change else 'find'}_{thing}", arguments))
            kinds[len(messages) - 1] = "call"
            messages.append(_result(call_id, thing, records))
            messages.append(assistant(fact(thing, name, known)))
            kinds[len(messages) - 1] = "answer"
            lookups.append(records)
        thing, name, known = rng.choice(rng.choice(lookups[:-1] or lookups))
        messages.append(user(rng.choice(RECALLS).format(thing=thing, name=name)))
        messages.append(assistant(fact(thing, name, known)))
        kinds[len(messages) - 1] = "recall"
    return messages, kinds


def _records(rng: Random, unused: list[str], size: int, change: bool) -> list[tuple[str, str, str]]:
    """Draw `size` new records `(thing, name, value)` of one thing; takes their names out of `unused`."""
    thing = rng.choice(CHANGEABLE if change else THINGS)
    return [(thing, unused.pop(), value(rng)) for _ in range(size)]


def _call(call_id: str, tool: str, arguments: dict[str, Any]) -> Message:
    function = {"name": tool, "arguments": json.dumps(arguments)}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _result(call_id: str, thing: str, records: list[tuple[str, str, str]]) -> Message:
    content = json.dumps({thing: {f"@{name}": known for _, name, known in records}})
    return {"role": "tool", "tool_call_id": call_id, "content": content}
