"""Serve prompts that a remote has while something is wrong with it, and compute each beside it. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from machine import Orders, told
from measure import REDIS, first_line, pinned, running

from kvlab import models
from kvlab.decoder import Decoder
from kvlab.provenance import provenance
from kvlab.store.remote.redis_client import PASSWORD_VARIABLE
from kvlab.store.remote.sealing import BLOCKS, CHILDREN

PORT = 6399
WAIT_MS = 50
REQUESTS = 3
"""Served one after the other under each fault."""
SLOW_S = 0.5
NEW = 100
"""Added to the numbers of prompts, gives those that the remote does not have, and would have to take."""
COUNTERS = ("remote_trips", "remote_late", "remote_refused", "remote_failures", "unreadable")
BACK_POLL_S, BACK_LIMIT_S = 0.01, 30.0


class Server:
    """A Redis server behind a line whose delay can be changed, with what it held at first."""

    def __init__(self, cpu: int | None) -> None:
        self.command = [*pinned(cpu), "redis-server", "--port", str(PORT), "--bind", "127.0.0.1", *REDIS]
        self.direct = redis.Redis(port=PORT)
        self.start()
        proxy = [*pinned(cpu), sys.executable, str(Path(__file__).parent / "delay.py"), "127.0.0.1", str(PORT), "0"]
        self.line = subprocess.Popen(proxy, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"redis://127.0.0.1:{first_line(self.line.stdout)}/0"
        self.kept: dict[bytes, bytes] = {}

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        while True:
            with contextlib.suppress(redis.ConnectionError):
                self.direct.ping()
                return
            time.sleep(0.01)

    def keep(self) -> None:
        """Remember all that is stored."""
        self.kept = {name: self.direct.dump(name) for name in self.direct.scan_iter()}

    def restore(self) -> None:
        """Store again what was remembered, and nothing else."""
        self.direct.flushall()
        for name, value in self.kept.items():
            self.direct.restore(name, 0, value)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def delay(self, seconds: float) -> None:
        self.line.stdin.write(f"{seconds}\n")
        self.line.stdin.flush()

    def revive(self) -> None:
        self.start()
        self.restore()

    def refuse(self) -> None:
        """Ask for a password that nobody was told."""
        self.direct.config_set("requirepass", "another")
        self.direct = redis.Redis(port=PORT, password="another")
        self.direct.client_kill_filter(_type="normal", skipme=True)

    def accept(self) -> None:
        self.direct.config_set("requirepass", "")
        self.direct = redis.Redis(port=PORT)

    def flip(self) -> None:
        """Flip a bit of every block, each at another place."""
        for at, name in enumerate(sorted(self.direct.keys(f"{BLOCKS}*"))):
            data = bytearray(self.direct.get(name))
            data[(at * 7919) % len(data)] ^= 1 << at % 8
            self.direct.set(name, bytes(data))

    def replace(self) -> None:
        """Put data of others in the place of every block, and into the collections."""
        for at, name in enumerate(sorted(self.direct.keys(f"{BLOCKS}*"))):
            self.direct.delete(name)
            if at % 2:
                self.direct.set(name, os.urandom(1000))
            else:
                self.direct.lpush(name, "a list of somebody else")
        for name in self.direct.scan_iter(f"{CHILDREN}*"):
            self.direct.hset(name, "not a key", b"\xff")


Act = Callable[[Server], None]
FAULTS: dict[str, tuple[Act, Act]] = {
    "none": (lambda server: None, lambda server: None),
    "killed": (Server.kill, Server.revive),
    "hangs": (Server.stop, Server.go_on),
    "hangs while it is read": (lambda server: None, Server.go_on),
    "500 ms late": (lambda server: server.delay(SLOW_S), lambda server: server.delay(0.0)),
    "full": (
        lambda server: server.direct.config_set("maxmemory", 1),
        lambda server: server.direct.config_set("maxmemory", 0),
    ),
    "flipped bits": (Server.flip, Server.restore),
    "wrong password": (Server.refuse, Server.accept),
    "foreign data": (Server.replace, Server.restore),
}


def measured(orders: Orders, server: Server, policy: str, fault: str, lengths: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a row for each request under a fault: its time and that of computing it, then the time of its return."""
    begin, end = FAULTS[fault]
    with orders.machine(policy, server.url, WAIT_MS) as decoder, Decoder(orders.model, policy) as alone:
        decoder.generate(orders.prompt(lengths[0], 2 * NEW), max_tokens=1)  # computed: it learns how long that takes
        decoder.generate(orders.prompt(lengths[0]), max_tokens=1)
        decoder.store.flush()
        begin(server)
        if fault == "hangs while it is read":
            stop_at_reading(decoder, server)
        for at in range(1, REQUESTS + 1):
            for length in lengths:
                prompt = orders.prompt(length, at + (NEW if fault == "full" else 0))
                done = decoder.generate(prompt, max_tokens=4)
                computed = alone.generate(prompt, max_tokens=4)
                row = {"fault": fault, "length": length, "request": at} | told(done)
                row |= {"computed_ttft_ms": computed.ttft_ms, "ratio": done.ttft_ms / computed.ttft_ms}
                decoder.store.flush()
                yield row | {"equal": done.tokens == computed.tokens} | counters(decoder)
        since = time.monotonic()
        end(server)
        while trouble(decoder) and time.monotonic() < since + BACK_LIMIT_S:
            time.sleep(BACK_POLL_S)
        back_s = time.monotonic() - since
        again = decoder.generate(orders.prompt(lengths[0], REQUESTS + 1), max_tokens=1)
        yield {"fault": fault, "back_s": back_s, "from_remote": again.cached_by_tier.get("remote", 0)}


def stop_at_reading(decoder: Decoder, server: Server) -> None:
    """Have the server hang from the next reading of a block on."""
    client = decoder.store._tiers[-1]._client
    read = client.read

    def stopped(names: list[str]) -> dict[str, bytes]:
        client.read = read
        server.stop()
        return read(names)

    client.read = stopped


def counters(decoder: Decoder) -> dict[str, Any]:
    stats = decoder.store.stats()
    return {name: stats[name] for name in COUNTERS} | {"misses": dict(stats["misses"])}


def trouble(decoder: Decoder) -> bool:
    return bool(decoder.store.stats()["trouble"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--policy", default="full")
    parser.add_argument("--lengths", nargs="+", type=int, default=[250, 500, 1000])
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--other-cpu", type=int, help="CPU of the server and of the line")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ.pop(PASSWORD_VARIABLE, None)
    orders = Orders(models.load() if arguments.model == "bundled" else models.load(arguments.model))
    server = Server(arguments.other_cpu)
    rows: list[dict[str, Any]] = []
    with running(server.line):
        try:
            with orders.machine(arguments.policy, server.url, WAIT_MS) as decoder:
                for at in range(REQUESTS + 2):
                    for length in arguments.lengths:
                        decoder.generate(orders.prompt(length, at), max_tokens=1)
                        decoder.store.flush()
            server.keep()
            for fault in arguments.faults:
                rows += measured(orders, server, arguments.policy, fault, arguments.lengths)
                server.restore()
                print(fault, file=sys.stderr, flush=True)
        finally:
            server.go_on()
            server.kill()
    about = {"model": Path(arguments.model).name, "policy": arguments.policy, "wait_ms": WAIT_MS}
    text = ",\n".join(json.dumps(about | row) for row in rows)
    arguments.out.write_text(json.dumps({"provenance": provenance()})[:-1] + f',\n"rows": [\n{text}\n]}}\n')


if __name__ == "__main__":
    main()
