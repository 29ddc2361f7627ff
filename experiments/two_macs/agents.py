"""Serve many agents by several processes that share a remote, and by one process: see README.md.

Every turn of an agent is served by another process than its turn before. A process is told the turns of one round at a
time, and the next round begins when all of them, and their writes, have ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kvlab import models
from kvlab.decoder import Decoder
from kvlab.experiments.prompts import Prompts
from kvlab.provenance import provenance
from kvlab.workloads.agent import Agent

CONCURRENCY = 8
"""Requests at once in each process."""
WAIT_MS = 2000
"""Of a lookup: here all processes share the cores of one machine."""
REDIS = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--loglevel", "warning")
COUNTERS = ("remote_bytes_sent", "remote_bytes_received", "remote_trips", "remote_late", "remote_refused")


def serve(model: str, policy: str, url: str, processes: int, own: int, agents: int, turns: int) -> None:
    """Serve, as process ``own`` of so many, a round for each line of the standard input; answer a line of JSON."""
    loaded = models.load() if model == "bundled" else models.load(model)
    requests = Agent(agents, 0, turns).requests()
    prompts = Prompts(loaded, requests)
    rounds = [requests[turn::turns] for turn in range(turns)]
    with tempfile.TemporaryDirectory(prefix="kvlab-agents-") as folder:
        spec = f"{policy}|tiered:dir={folder},remote={url},remote_wait={WAIT_MS}"
        with Decoder(loaded, spec, max_concurrency=CONCURRENCY) as decoder:
            print(json.dumps({"ready": True}), flush=True)
            for turn, _ in enumerate(sys.stdin):
                mine = [(at, one) for at, one in enumerate(rounds[turn]) if (at + turn) % processes == own]
                asked = [prompts.turn(request) for _, request in mine]
                done = [decoder.submit(one.prompt, max_tokens=one.max_tokens).result for one in asked]
                answers = [
                    {
                        "agent": at,
                        "turn": turn + 1,
                        "process": own,
                        "prompt_tokens": completion.prompt_tokens,
                        "cached_tokens": completion.cached_tokens,
                        "from_remote": completion.cached_by_tier.get("remote", 0),
                        "miss": completion.miss,
                        "tokens": list(completion.tokens),
                    }
                    for (at, _), completion in zip(mine, (result() for result in done), strict=True)
                ]
                assert decoder.store is not None
                is_written = decoder.store.flush()
                stats = decoder.store.stats()
                counters = {name: stats[name] for name in COUNTERS}
                print(json.dumps({"answers": answers, "flushed": is_written, "counters": counters}), flush=True)


def served(arguments: argparse.Namespace, processes: int) -> dict[str, Any]:
    """Serve all agents by so many processes over an empty server; return answers, counters and the server's bytes."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvlab-agents-redis-"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        start = [arguments.redis, "--port", str(port), "--dir", folder, *REDIS]
        server = subprocess.Popen(start, stdout=subprocess.DEVNULL)
        stack.callback(server.wait)
        stack.callback(server.terminate)
        url = f"redis://127.0.0.1:{port}/0"
        given = [arguments.model, arguments.policy, url, str(processes)]
        workers = []
        for own in range(processes):
            command = [sys.executable, __file__, "--worker", *given, str(own), str(arguments.agents)]
            worker = subprocess.Popen(
                [*command, str(arguments.turns)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
            workers.append(worker)
        with ThreadPoolExecutor(processes) as pool:
            list(pool.map(_answer, workers))
            rounds = [list(pool.map(_round, workers)) for _ in range(arguments.turns)]
        info = _info(port)
    last = rounds[-1]
    return {
        "answers": [answer for parts in rounds for part in parts for answer in part["answers"]],
        "flushed": all(part["flushed"] for parts in rounds for part in parts),
        "counters": {name: sum(part["counters"][name] for part in last) for name in COUNTERS},
        "to_server_bytes": int(info["total_net_input_bytes"]),
        "from_server_bytes": int(info["total_net_output_bytes"]),
        "held_bytes": int(info["used_memory_dataset"]),
    }


def _round(worker: Any) -> dict[str, Any]:
    worker.stdin.write("\n")
    worker.stdin.flush()
    return _answer(worker)


def _answer(worker: Any) -> dict[str, Any]:
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError("a process ended before it answered")
    found: dict[str, Any] = json.loads(line)
    return found


def _info(port: int) -> dict[str, str]:
    import redis

    found = redis.Redis(port=port).info()
    return {name: str(value) for name, value in found.items()}


def summary(done: dict[str, Any], processes: int) -> dict[str, Any]:
    """Return a row: hit ratio, bytes over the wire, and counters of trouble.

    In the first round every process computes the system prompt, since none has written it yet: ``later_hit_ratio`` is
    that of the rounds behind it.
    """
    answers = done["answers"]
    prompt, cached = _tokens(answers)
    later_prompt, later_cached = _tokens([one for one in answers if one["turn"] > 1])
    return {
        "processes": processes,
        "requests": len(answers),
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "from_remote": sum(one["from_remote"] for one in answers),
        "hit_ratio": cached / prompt,
        "later_hit_ratio": later_cached / later_prompt,
        "flushed": done["flushed"],
        **done["counters"],
        **{name: done[name] for name in ("to_server_bytes", "from_server_bytes", "held_bytes")},
    }


def _tokens(answers: list[dict[str, Any]]) -> tuple[int, int]:
    """Return the tokens of the prompts, and those of them that were not computed."""
    return sum(one["prompt_tokens"] for one in answers), sum(one["cached_tokens"] for one in answers)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        model, policy, url, *numbers = sys.argv[2:]
        return serve(model, policy, url, *map(int, numbers))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--policy", default="full")
    parser.add_argument("--agents", type=int, default=256)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--redis", default="redis-server", help="the server's program")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    several, one = served(arguments, arguments.processes), served(arguments, 1)
    by_request = [
        {(answer["agent"], answer["turn"]): answer["tokens"] for answer in done["answers"]} for done in (several, one)
    ]
    equal = sum(by_request[0][name] == tokens for name, tokens in by_request[1].items())
    about = {"model": arguments.model, "policy": arguments.policy, "agents": arguments.agents, "turns": arguments.turns}
    rows = [
        about | summary(done, processes) | {"equal_answers": equal}
        for done, processes in ((several, arguments.processes), (one, 1))
    ]
    arguments.out.write_text(
        json.dumps({"provenance": provenance()})[:-1] + ',\n"rows": [\n' + ",\n".join(map(json.dumps, rows)) + "\n]}\n"
    )


if __name__ == "__main__":
    main()
