"""Servers to talk to: in processes of their own, as users run them, or in this one, as notebooks do."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from kvlab.server import Handle, serve
from tests.processes import ROOT, environment


class Endpoint:
    """Something at ``url`` that answers."""

    url: str

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120, **options)


class Local(Endpoint):
    """:func:`kvlab.server.serve` in this process; a context manager that stops it. Takes its arguments."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.handle: Handle = serve(*arguments, **settings)
        self.url = self.handle.url

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.stop()


class Served(Endpoint):
    """``kvlab serve`` in a process. ``url`` once it is ready; a context manager that ends it.

    ``module`` and its arguments stand for ``kvlab``.
    """

    def __init__(
        self, *options: str, home: Path | None = None, port: int = 0, module: tuple[str, ...] = ("kvlab",)
    ) -> None:
        variables = environment() if home is None else environment(KVLAB_HOME=str(home))
        command = [sys.executable, "-m", *module, "serve", "--port", str(port), *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables, cwd=ROOT
        )
        self.log: list[str] = []
        assert self.process.stdout is not None
        threading.Thread(target=self._read_log, daemon=True).start()
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if not found:
            self.process.wait(10)
            raise RuntimeError(f"no server: {line} {''.join(self.log)}")
        self.url = found.group(0)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def terminate(self) -> int:
        """As a user or a supervisor would; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.terminate()


def endless(content: str, **fields: Any) -> dict[str, Any]:
    """A chat request to the bundled model whose answer never ends by itself."""
    return chat(content, max_tokens=20000, logit_bias={"2297": -100}) | fields


def chat(content: str, **fields: Any) -> dict[str, Any]:
    """A chat request of one user message."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


def stated_bytes(server: Endpoint, **options: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Return what ``/metrics`` says that the server holds, and its limits, by what is held.

    ``options`` are those of the request.
    """
    text = server.get("/metrics", **options).text
    samples = re.findall(r"^kvlab_(\w+?)_bytes(_limit)?(\{[^}]*\})? (\S+)$", text, re.M)
    held = {name + labels: float(number) for name, limit, labels, number in samples if not limit}
    limits = {name + labels: float(number) for name, limit, labels, number in samples if limit}
    return held, limits
