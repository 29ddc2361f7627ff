"""kvlab's server beside mlx_lm.server: an agent's loop with a restart, and crowds of agents. See README.md.

    PYTHONPATH=. python experiments/server_bench/bench.py [--json] [--out FILE]

The servers take turns, in one go: only one runs at a time, and who begins changes from round to round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import kvlab  # noqa: F401 - before MLX, for its BLAS

# isort: split
import httpx
from plain_text import body_of
from servers import Server, both, write_model

from kvlab.models import LoadedModel, load
from kvlab.provenance import document, provenance
from kvlab.workloads.agent import Agent
from kvlab.workloads.words import filler

Row = dict[str, Any]


@dataclass
class Answer:
    """One streamed answer. ``ttft_ms``: from the request's first byte to the first text."""

    ttft_ms: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    failed: str = ""


async def ask(client: httpx.AsyncClient, server: Server, body: Mapping[str, Any]) -> Answer:
    """Stream one answer; what goes wrong with the connection or the status is noted on it."""
    answer = Answer()
    told = {"model": server.model, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0, **body}
    began = time.perf_counter()
    try:
        async with client.stream("POST", f"{server.url}/v1/chat/completions", json=told) as response:
            if response.status_code != 200:
                return Answer(failed=f"status {response.status_code}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                part = json.loads(line[6:])
                if not answer.ttft_ms and any(choice["delta"].get("content") for choice in part.get("choices", [])):
                    answer.ttft_ms = 1e3 * (time.perf_counter() - began)
                if usage := part.get("usage"):
                    answer.tokens, answer.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
                    answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    except httpx.TransportError as error:
        return Answer(failed=type(error).__name__)
    if not answer.ttft_ms or not answer.tokens:
        answer.failed = "no answer"
    return answer


def connections() -> httpx.AsyncClient:
    """Every agent its own connection, and patience."""
    return httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None, max_keepalive_connections=None))


# -- an agent's loop ------------------------------------------------------------------------------------------------


async def loop(server: Server, model: LoadedModel, turns: int, tokens: int) -> list[tuple[str, Answer]]:
    """``turns`` turns of one conversation, a restart, and one turn more; each with its phase."""
    bodies = [{**body_of(request, model), "max_tokens": tokens} for request in Agent(turns=turns + 1).requests()]
    answers = []
    server.start()
    async with connections() as client:
        for turn, body in enumerate(bodies[:-1]):
            answers.append(("warm" if turn else "cold", await ask(client, server, body)))
    server.stop()
    server.start()
    async with connections() as client:
        answers.append(("restart", await ask(client, server, bodies[-1])))
    server.stop()
    return answers


def loop_rows(rounds: Mapping[str, list[list[tuple[str, Answer]]]], policies: Mapping[str, str]) -> Iterator[Row]:
    """Medians over the rounds: every turn, the sum before the restart, and the first turn after it."""
    sums: dict[str, float] = {}
    restarts: dict[str, float] = {}
    for name, runs in rounds.items():
        about = {"policy": policies[name], "server": name, "workload": "agent"}
        for turn, at_turn in enumerate(zip(*runs, strict=True), start=1):
            phase, answers = at_turn[0][0], [answer for _, answer in at_turn]
            if bad := [answer.failed for answer in answers if answer.failed]:
                raise RuntimeError(f"{name} failed in turn {turn}: {bad[0]}")
            where = {**about, "turn": turn, "phase": phase}
            yield {**where, "metric": "ttft_ms", "value": statistics.median(a.ttft_ms for a in answers), "unit": "ms"}
            yield {**where, "metric": "prompt_tokens", "value": answers[0].prompt_tokens, "unit": "tokens"}
            yield {**where, "metric": "cached_tokens", "value": answers[0].cached_tokens, "unit": "tokens"}
        sums[name] = statistics.median(sum(a.ttft_ms for phase, a in run if phase != "restart") for run in runs)
        restarts[name] = statistics.median(run[-1][1].ttft_ms for run in runs)
        yield {**about, "metric": "ttft_sum_ms", "value": sums[name], "unit": "ms"}
    for what, values in (("ttft_sum_ms", sums), ("ttft_ms after a restart", restarts)):
        yield ratio("agent", what, values["kvlab"] / values["mlx-lm"])


# -- crowds ---------------------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """What ``n`` agents saw of one server, all rounds together."""

    seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.failed]

    def rows(self) -> Iterator[Row]:
        refused = len(self.answers) - len(self.good)
        yield {"metric": "failed", "value": refused, "unit": "requests"}
        yield {"metric": "requests", "value": len(self.answers), "unit": "requests"}
        if self.good:
            yield {"metric": "tokens_per_s", "value": self.rate, "unit": "tokens/s"}
            yield {"metric": "ttft_p95_ms", "value": self.p95, "unit": "ms"}

    @property
    def rate(self) -> float:
        return sum(answer.tokens for answer in self.good) / self.seconds

    @property
    def p95(self) -> float:
        times = sorted(answer.ttft_ms for answer in self.good)
        return times[min(len(times) - 1, int(0.95 * len(times)))]


def system_prompt(tokens: int, model: LoadedModel) -> str:
    """Plain sentences of about as many tokens."""
    rng, text = Random("server_bench"), "You are a helpful clerk."
    while len(model.encode(text)) < tokens:
        text += " " + filler(rng)
    return text


async def crowd(
    server: Server, n: int, requests: int, tokens: int, system: str, seed: int
) -> tuple[float, list[Answer]]:
    """``n`` agents at once, each with a conversation of its own of ``requests`` turns; the seconds, and all answers."""

    async def one(number: int, client: httpx.AsyncClient) -> list[Answer]:
        rng = Random(f"{seed}/{number}")
        messages = [{"role": "system", "content": system}]
        answers = []
        for _ in range(requests):
            messages.append({"role": "user", "content": " ".join(filler(rng) for _ in range(3))})
            answers.append(await ask(client, server, {"messages": messages, "max_tokens": tokens}))
            messages.append({"role": "assistant", "content": filler(rng)})
        return answers

    async with connections() as client:
        began = time.perf_counter()
        answers = await asyncio.gather(*(one(number, client) for number in range(n)))
        return time.perf_counter() - began, [answer for agent in answers for answer in agent]


def crowd_rows(crowds: Mapping[tuple[str, int], Crowd], policies: Mapping[str, str]) -> Iterator[Row]:
    for (name, n), seen in crowds.items():
        about = {"policy": policies[name], "server": name, "workload": "crowd", "n": n}
        yield from ({**about, **row} for row in seen.rows())
    for n in dict.fromkeys(n for _, n in crowds):
        ours, theirs = crowds["kvlab", n], crowds["mlx-lm", n]
        if ours.good and theirs.good:
            yield ratio("crowd", "tokens_per_s", ours.rate / theirs.rate, n=n)
            yield ratio("crowd", "ttft_p95_ms", ours.p95 / theirs.p95, n=n)


def ratio(workload: str, what: str, value: float, **where: Any) -> Row:
    about = {"policy": "tiered", "workload": workload, "metric": "ratio", "value": value, "unit": "x", **where}
    return {**about, "of": f"{what} of kvlab", "to": f"{what} of mlx-lm"}


# -- all of it ------------------------------------------------------------------------------------------------------


def turned(servers: Sequence[Server], round_: int) -> list[Server]:
    """Who begins changes from round to round."""
    return list(servers[::-1] if round_ % 2 else servers)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both parts, as kvlab's document of tidy rows."""
    with tempfile.TemporaryDirectory(prefix="server-bench-") as made:
        folder = Path(made)
        model = load(options.model or write_model(folder / "qwen3-random-10m", options.seed))
        servers = both(folder, model)
        try:
            rows = [{**row, "model": model.name} for row in _rows(options, servers, model)]
        finally:
            for server in servers:
                server.stop()
        settings = {key: value for key, value in vars(options).items() if key not in ("json", "out", "seed")}
        return document("server_bench", rows, provenance(model, seed=options.seed, settings=settings))


def _rows(options: argparse.Namespace, servers: Sequence[Server], model: LoadedModel) -> Iterator[Row]:
    policies = {server.name: server.policy for server in servers}
    loops: dict[str, list[list[tuple[str, Answer]]]] = {server.name: [] for server in servers}
    for round_ in range(options.rounds):
        for server in turned(servers, round_):
            say(f"agent loop, round {round_ + 1}: {server.name}")
            loops[server.name].append(asyncio.run(loop(server, model, options.turns, options.tokens)))
    yield from loop_rows(loops, policies)
    system = system_prompt(options.system_tokens, model)
    crowds = {(server.name, n): Crowd() for n in options.agents for server in servers}
    for round_ in range(options.crowd_rounds):
        for n in options.agents:
            for server in turned(servers, round_):
                server.start()  # anew, so that no crowd finds the prompts of the one before
                work = crowd(server, n, options.requests, options.tokens, system, 1000 * round_ + n)
                seconds, answers = asyncio.run(work)
                server.stop()
                say(f"{n} agents, round {round_ + 1}: {server.name}, {seconds:.1f} s")
                seen = crowds[server.name, n]
                seen.seconds += seconds
                seen.answers += answers
    yield from crowd_rows(crowds, policies)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(row: Row) -> str:
    where = " ".join(f"{key}={row[key]}" for key in ("server", "turn", "phase", "n", "of", "to") if key in row)
    return f"{row['workload']:<7}{row['metric']:<15}{row['value']:>12.2f} {row['unit']:<9}{where}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document, and nothing else")
    parser.add_argument("--out", type=Path, help="write the document to this file, too")
    parser.add_argument("--model", help="what kvlab loads; without it, a Qwen3 of 10M random weights")
    parser.add_argument("--turns", type=int, default=15, help="of the agent's loop, before the restart")
    parser.add_argument("--rounds", type=int, default=3, help="of the agent's loop")
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--requests", type=int, default=2, help="of every agent in a crowd")
    parser.add_argument("--crowd-rounds", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=24, help="of every answer")
    parser.add_argument("--system-tokens", type=int, default=1350, help="that all agents of a crowd have in common")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    made = measure(options)
    text = json.dumps(made, indent=1, default=str)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text if options.json else "\n".join(show(row) for row in made["rows"]))


if __name__ == "__main__":
    main()
