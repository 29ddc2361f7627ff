"""A server's process: started, watched until it answers, stopped, started again on what it left."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import httpx
import setups
from setups import Setup

from kvlab.audit.bound_process import bound_command

START_S = 300
STOP_S = 60
LOG_CHARS = 2000


class ServerProcess:
    """A running server in a home folder of its own, so that nothing it keeps lies among the user's files.

    Raises RuntimeError where it ends or stays silent for ``START_S`` seconds; its log says why.
    """

    def __init__(self, setup: Setup, model: Path, work: Path, environments: Path | None = None) -> None:
        self.setup, self.work = setup, work
        work.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = work / f"{setup.name}.log"
        self.home = work / "home"
        self._command = setups.command(setup, self.port, model, environments)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return when it lists its model."""
        self.home.mkdir(exist_ok=True)
        own = {"HOME": str(self.home), "KVLAB_HOME": str(self.home / "kvlab"), "HF_HUB_OFFLINE": "1"}
        with self.log.open("ab") as log:
            command = bound_command(self._command)  # a script that is killed leaves no server
            self._process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
        until = time.monotonic() + START_S
        while True:
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                said = self.log.read_text(encoding="utf-8", errors="replace")[-LOG_CHARS:]
                raise RuntimeError(f"{self.setup.name} did not start; its log ends with:\n{said}")
            try:
                if httpx.get(f"{self.url}/v1/models", timeout=5).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.5)

    def stop(self, *, kill: bool = False) -> None:
        """End the server with SIGTERM as a supervisor does, or with SIGKILL as a crash does."""
        if self._process is None:
            return
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def restart(self, *, kill: bool = False) -> None:
        """Stop and start again on the same folder."""
        self.stop(kill=kill)
        self.start()

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
