"""Well-behaved clients of a server under attack, and clocks that do not blame the server for a busy machine."""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TICK_S = 0.01
"""How long a client waits for bytes at a time. A client that the machine did not run for longer loses no more."""
END_TOKEN = "2297"
"""Of the bundled model: forbidden, so that an answer is as long as asked for."""
MAX_TOKENS = 400
QUESTIONS = (
    "The code of @mira is #417. What is the code of @mira?",
    "Look up the badge of @noah, please, and tell me about the building.",
    "Tell me all the rules of the house, from the first to the last.",
)


def cpu_seconds(process: int) -> float:
    """CPU time that a process has used on all its threads; where that cannot be read, the time of day."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Wait:
    """How long a client waited for something. ``charged`` is the part that the server is responsible for.

    It is the smaller one of the time that passed for the client (it leaves out what the machine did not run the
    client) and the CPU time that the server used (it leaves out what the machine did not run the server).
    """

    wall: float = 0.0
    charged: float = 0.0


class Stopwatch:
    """Measures waits for one server process. ``tick`` is called after each at most TICK_S of waiting for bytes."""

    def __init__(self, process: int) -> None:
        self._process = process
        self.restart()

    def restart(self) -> None:
        self._began = self._last = time.monotonic()
        self._cpu = cpu_seconds(self._process)
        self._client = 0.0

    def tick(self) -> None:
        now = time.monotonic()
        self._client += min(now - self._last, 2 * TICK_S)
        self._last = now

    def wait(self) -> Wait:
        """The time since the last restart, and restart."""
        wall, cpu = time.monotonic() - self._began, cpu_seconds(self._process) - self._cpu
        made = Wait(wall, min(wall, self._client, cpu))
        self.restart()
        return made


@dataclass
class Heard:
    """What a client heard: a status, a text, its waits for the first token, between two tokens and for the end."""

    status: int = 0
    text: str = ""
    first: Wait = Wait()
    gap: Wait = Wait()
    whole: Wait = Wait()
    chunks: int = 0
    complete: bool = False


def listen(url: str, process: int, body: dict[str, Any], *, seconds: float = 60) -> Heard:
    """Stream a chat on a new connection. A server that closes it early or takes ``seconds`` leaves it incomplete."""
    parts = urlsplit(url)
    content = json.dumps({**body, "stream": True}).encode()
    head = (  # HTTP/1.0: the answer is not cut into chunks, and ends with its connection
        f"POST /v1/chat/completions HTTP/1.0\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    heard, watch, whole, received = Heard(), Stopwatch(process), Stopwatch(process), b""
    until = time.monotonic() + seconds
    try:
        with socket.create_connection((parts.hostname, parts.port), timeout=seconds) as made:
            made.sendall(head.encode() + content)
            made.setblocking(False)
            while time.monotonic() < until:
                ready, _, _ = select.select([made], [], [], TICK_S)
                watch.tick()
                whole.tick()
                if not ready:
                    continue
                chunk = made.recv(65536)
                if not chunk:
                    break
                received += chunk
                if not heard.status:
                    if b"\r\n\r\n" not in received:
                        continue
                    heard.status = int(received.split(b" ", 2)[1])
                    received = received.partition(b"\r\n\r\n")[2]
                *events, received = received.split(b"\n\n")
                for event in events:
                    _hear(heard, event, watch)
    except OSError:
        pass
    heard.whole = whole.wait()
    return heard


def _hear(heard: Heard, event: bytes, watch: Stopwatch) -> None:
    if event == b"data: [DONE]":
        heard.complete = True
    elif event.startswith(b"data: "):
        wait = watch.wait()
        for choice in json.loads(event[6:]).get("choices", []):
            heard.text += choice["delta"].get("content") or ""
        if heard.chunks == 0:
            heard.first = wait
        elif wait.charged >= heard.gap.charged:
            heard.gap = wait
        heard.chunks += 1


def question(number: int, **fields: Any) -> dict[str, Any]:
    """A request whose answer is MAX_TOKENS long."""
    words = QUESTIONS[number % len(QUESTIONS)]
    return {
        "messages": [{"role": "user", "content": words}],
        "max_tokens": MAX_TOKENS,
        "logit_bias": {END_TOKEN: -100},
        **fields,
    }


@dataclass
class Report:
    """What the clients of a server saw: the longest waits, wrong answers, and the server's memory.

    ``cut`` and ``unanswered`` count streams and newcomers that got no whole answer, by status; 0 is no status.
    """

    answers: int = 0
    wrong: int = 0
    cut: Counter[int] = field(default_factory=Counter)
    gap: Wait = Wait()
    first: Wait = Wait()
    newcomers: int = 0
    newcomer: Wait = Wait()
    unanswered: Counter[int] = field(default_factory=Counter)
    most_rss: int = 0

    def __str__(self) -> str:
        return (
            f"{self.answers} answers, {self.wrong} wrong, cut {dict(self.cut)}; longest gap {_ms(self.gap)}, "
            f"first token {_ms(self.first)}; {self.newcomers} newcomers, {_ms(self.newcomer)}, "
            f"unanswered {dict(self.unanswered)}; RSS {self.most_rss / 1e6:.0f} MB"
        )


def _ms(wait: Wait) -> str:
    return f"{1e3 * wait.wall:.0f} ms ({1e3 * wait.charged:.0f} charged)"


def longer(a: Wait, b: Wait) -> Wait:
    return a if (a.charged, a.wall) >= (b.charged, b.wall) else b


def watch(url: str, process: int, right: list[str], goes_on: Callable[[], bool]) -> Report:
    """Be a streaming client, whose answers must be ``right``, and newcomers with one token each, as it ``goes_on``."""
    report, over = Report(), threading.Event()

    def newcomers() -> None:
        number = 0
        while not over.wait(0.25):
            number += 1
            body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 1}
            heard = listen(url, process, body, seconds=30)
            report.newcomers += 1
            report.newcomer = longer(report.newcomer, heard.whole)
            if not heard.complete:
                report.unanswered[heard.status] += 1
            report.most_rss = max(report.most_rss, resident(process))

    thread = threading.Thread(target=newcomers)
    thread.start()
    try:
        while goes_on():
            number = report.answers
            heard = listen(url, process, question(number))
            report.answers += 1
            report.gap, report.first = longer(report.gap, heard.gap), longer(report.first, heard.first)
            if not heard.complete:
                report.cut[heard.status] += 1
            elif heard.text != right[number % len(right)]:
                report.wrong += 1
    finally:
        over.set()
        thread.join()
    return report


def resident(process: int) -> int:
    """Bytes of a process in RAM; 0 where that cannot be read, or once it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
