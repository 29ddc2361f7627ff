"""Two network namespaces joined by a line of a given rate: two machines, as far as the network is concerned."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

SUBNET = "10.77.0"
BURST_BYTES, QUEUE_MS = 128 << 10, 50
"""Of the rate limit: what may go at once, and for how long a packet may wait."""


class NoNamespaces(Exception):
    """Raised where this system or this user may not make network namespaces; says what was refused."""


@dataclass(frozen=True)
class Machine:
    """Names a namespace, and its address on the line."""

    name: str
    address: str

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Run a command there."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], **options)


@contextlib.contextmanager
def two_machines(bits_per_s: float) -> Iterator[tuple[Machine, Machine]]:
    """Yield two machines; each sends so many bits a second to the other. Raises ``NoNamespaces``."""
    one, two = (Machine(f"kvlab-{os.getpid()}-{n}", f"{SUBNET}.{n}") for n in (1, 2))
    cards = [f"kv{os.getpid()}n{n}" for n in (1, 2)]
    with contextlib.ExitStack() as stack:
        for machine in (one, two):
            _ip("netns", "add", machine.name)
            stack.callback(_ip, "netns", "del", machine.name)
        ends = [word for card, machine in zip(cards, (one, two), strict=True) for word in (card, machine.name)]
        _ip("link", "add", ends[0], "netns", ends[1], "type", "veth", "peer", "name", ends[2], "netns", ends[3])
        for card, machine in zip(cards, (one, two), strict=True):
            _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", card)
            _ip("-n", machine.name, "link", "set", card, "up")
            _ip("-n", machine.name, "link", "set", "lo", "up")
            limit = ["tbf", "rate", f"{bits_per_s:.0f}bit", "burst", str(BURST_BYTES), "latency", f"{QUEUE_MS}ms"]
            _run("tc", "-n", machine.name, "qdisc", "add", "dev", card, "root", *limit)
        yield one, two


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NoNamespaces(f"{command[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise NoNamespaces(f"'{' '.join(command)}': {error.stderr.strip()}") from error


def first_line(stream: IO[str]) -> str:
    """Return the next line of a process, without its end; raise where the process ended instead."""
    line = stream.readline()
    if not line:
        raise RuntimeError("a process ended before it answered")
    return line.strip()
