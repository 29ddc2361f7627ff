"""Mixed clients of one server, each on a thread: coding agents of both protocols, fixed questions, early leavers."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from kvlab.workloads.agent import LOOKUPS
from kvlab.workloads.desk import RULES, TOOLS
from kvlab.workloads.words import NAMES, THINGS, value
from tests.coding_agent import Claude, Proxy, Refused, Session

KEYS = ("tenant-a", "tenant-b", "tenant-c")
TURNS = 15
BUSY = (429, 503)
"""Statuses that tell a client to come back."""
GONE = (httpx.TransportError, httpx.StreamError)
"""What a client sees of a server that was stopped or killed."""
FORM = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "code": {"type": "integer"}},
    "required": ["name", "code"],
}


@dataclass
class Totals:
    """What all clients saw. ``texts``: plain answers by the id of their request. Thread-safe as it is used."""

    counts: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, number: int = 1) -> None:
        with self.lock:
            self.counts[what] += number


def fixed_questions() -> list[dict[str, Any]]:
    """Requests whose answers depend on nothing that was said before: with a grammar, and with seeded chance."""
    made = []
    for i in range(6):
        body = {"messages": [{"role": "user", "content": f"The code of @{NAMES[i]} is #{417 + i}. Write it down."}]}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": FORM}}
        made.append({**body, "max_tokens": 60, "response_format": form})
        made.append({**body, "max_tokens": 24, "temperature": 0.8, "seed": i})
    return made


def answer_of(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


class Clients:
    """Runs clients against ``url`` until ``stop``.

    Args:
        right: the answers to ``fixed_questions``, from a server that reuses nothing.
        agents: coding agents side by side; half of them speak each protocol.
    """

    def __init__(self, url: str, right: list[str], *, agents: int = 4, seed: int = 0) -> None:
        self.totals = Totals()
        self._url, self._right = url, right
        self._over = threading.Event()
        self._http = httpx.Client(timeout=120)
        work: list[Callable[[Random], None]] = [self._agent] * agents + [self._asker, self._leaver]
        self._threads = [
            threading.Thread(target=self._run, args=(work_, Random(f"{seed}/{i}"))) for i, work_ in enumerate(work)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[Random], None], rng: Random) -> None:
        while not self._over.is_set():
            try:
                work(rng)
            except GONE:
                self.totals.count("connections lost")
                time.sleep(0.3)
            except Refused as refusal:
                self._note_refusal(str(refusal), refusal.status)
            except Exception as error:  # noqa: BLE001 - a client that ends early would make the soak too easy
                self.totals.refused.append(f"{type(error).__name__}: {error}")
                return

    def _note_refusal(self, words: str, status: int) -> None:
        if status in BUSY:
            self.totals.count("told to come back")
            time.sleep(0.3)
        else:
            self.totals.refused.append(words)

    def _agent(self, rng: Random) -> None:
        """A conversation to its end, whatever happens to the server; now and then its list of tools changes."""
        client = rng.choice([Claude, Proxy])(_session(rng), max_tokens=80, key=rng.choice(KEYS))
        while len(client.session.turns) < TURNS and not self._over.is_set():
            if rng.random() < 0.1:
                client.session.tools = _changed(rng)
                self.totals.count("tool lists changed")
            try:
                turn = client.turn(self._url)
            except GONE:
                self.totals.count("connections lost")
                time.sleep(0.3)
                continue
            except Refused as refusal:
                self._note_refusal(str(refusal), refusal.status)
                continue
            self.totals.count(f"turns of {type(client).__name__}")
            self.totals.count("calls", turn.calls)
            self.totals.count("prompt tokens", turn.prompt)
            self.totals.count("cached tokens", turn.cached)
        self.totals.count("conversations")

    def _asker(self, rng: Random) -> None:
        """Fixed questions, answers of which are compared at once, and plain ones, whose text is kept."""
        headers = {"authorization": f"Bearer {rng.choice(KEYS)}"}
        for number, body in enumerate(fixed_questions()):
            if self._over.is_set():
                return
            made = self._http.post(f"{self._url}/v1/chat/completions", json=body, headers=headers)
            if made.status_code != 200:
                self._note_refusal(made.text[:300], made.status_code)
                continue
            self.totals.count("fixed questions")
            if (said := answer_of(made)) != self._right[number]:
                self.totals.wrong.append(f"question {number}: {said!r} for {self._right[number]!r}")
            words = (
                f"{rng.choice(LOOKUPS).format(thing='badge', name=rng.choice(NAMES))} {RULES[: rng.randrange(1500)]}"
            )
            body = {"messages": [{"role": "user", "content": words}], "max_tokens": 24}
            made = self._http.post(f"{self._url}/v1/chat/completions", json=body, headers=headers)
            if made.status_code == 200:
                self.totals.texts[made.json()["id"]] = answer_of(made)
            else:
                self._note_refusal(made.text[:300], made.status_code)
            self._over.wait(0.2)

    def _leaver(self, rng: Random) -> None:
        """Begins long answers and leaves in the middle of them, or before the first token."""
        path = rng.choice(["/v1/chat/completions", "/v1/messages"])
        words = f"{RULES} {rng.randrange(10**6)}" * rng.randrange(1, 3)
        body = {"messages": [{"role": "user", "content": words}], "max_tokens": 3_000, "stream": True}
        headers = {"authorization": f"Bearer {rng.choice(KEYS)}"}
        patience = rng.choice([0.01, 0.1, 60])
        try:
            with self._http.stream("POST", self._url + path, json=body, headers=headers,
                              timeout=httpx.Timeout(60, read=patience)) as response:  # fmt: skip
                if response.status_code != 200:
                    self._note_refusal(response.read().decode()[:300], response.status_code)
                    return
                for _ in itertools.islice(response.iter_lines(), rng.randrange(2, 60)):
                    pass
        except httpx.ReadTimeout:
            pass
        self.totals.count("left early")
        self._over.wait(rng.random())


def _changed(rng: Random) -> list[dict[str, Any]]:
    """The tools in another order, some with another description.

    None is left out: the model knows their names, and without one of them a grammar would have to choose for it.
    """
    tools = copy.deepcopy(rng.sample(TOOLS, len(TOOLS)))
    for tool in tools[:2]:
        tool["function"]["description"] += f" Changed {rng.randrange(1000)}."
    return tools


def _session(rng: Random) -> Session:
    names = itertools.cycle(rng.sample(NAMES, 200))
    questions = (rng.choice(LOOKUPS).format(thing=rng.choice(THINGS), name=name) for name in names)

    def result(name: str, given: dict[str, Any]) -> str:
        who = str(given.get("handle", "@nobody"))
        return f'{{"{name.partition("_")[2]}": {{"{who[:40]}": "{value(Random(who))}"}}}}'

    made = Session(["You are a command line tool.", RULES], TOOLS, questions, result)
    made.resume({"name": "find_badge", "input": {"handle": f"@{next(names)}"}})
    return made
