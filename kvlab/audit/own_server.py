"""``OwnServer``: a ``kvlab serve`` of its own for an audit, in a process and a folder that are gone afterwards.

``python -m kvlab.audit.own_server FOLDER`` restarts it, and with ``kill`` after FOLDER kills it first: those are its
commands for the probes of restarts.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

from kvlab.audit.bound_process import STOP_S, bound_command, has_ended
from kvlab.audit.errors import AuditError
from kvlab.paths import home

START_S = 300.0
"""Until it answers; a large model is read from disk meanwhile."""

POLL_S = 0.1


class OwnServer:
    """Starts ``kvlab serve`` with ``arguments`` on a free port, with a KVLAB_HOME of its own that begins empty.

    A context manager: leaving it stops the server and removes the folder, and so does the end of this process, however
    it comes. Raises AuditError with the server's own words where it does not start.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = list(arguments)

    def __enter__(self) -> OwnServer:
        self._temporary = tempfile.TemporaryDirectory(prefix="kvlab-audit-")
        self.folder = Path(self._temporary.name)
        (self.folder / "home").mkdir()
        if (home() / "models").is_dir():
            (self.folder / "home" / "models").symlink_to(home() / "models", target_is_directory=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "kvlab", "serve", *self._arguments, "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        bound = bound_command(command, remove=self.folder)
        plan = {"command": bound, "url": self.url}
        (self.folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        try:
            start(self.folder)
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def restart(self) -> str:
        """The shell command that stops it in order and starts it."""
        return shlex.join([sys.executable, "-m", "kvlab.audit.own_server", str(self.folder)])

    @property
    def kill(self) -> str:
        """The shell command that kills it, as a power cut would, and starts it."""
        return f"{self.restart} kill"

    def __exit__(self, *_: object) -> None:
        stop(self.folder)
        self._temporary.cleanup()


def start(folder: Path) -> None:
    """Start the server of ``folder`` and wait until it answers. Raises AuditError where it ends instead."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    environment = {**os.environ, "KVLAB_HOME": str(folder / "home")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            plan["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    (folder / "pid").write_text(str(process.pid))
    until = time.monotonic() + START_S
    while not _answers(plan["url"]):
        status = process.poll()
        if status is not None or time.monotonic() > until:
            lines = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            silent = f"no answer within {START_S:g} s" if status is None else f"it ended with status {status}"
            raise AuditError(f"kvlab serve did not start: {lines[-1].removeprefix('kvlab: ') if lines else silent}")
        time.sleep(POLL_S)


def stop(folder: Path, *, at_once: bool = False) -> None:
    """Stop the server of ``folder`` as a supervisor does; kill it ``at_once``, or where nothing else ends it."""
    try:
        process = psutil.Process(int((folder / "pid").read_text()))
        if not at_once:
            process.terminate()
            if _has_ended(process, STOP_S):
                return
        process.kill()
        _has_ended(process, STOP_S)
    except (psutil.NoSuchProcess, FileNotFoundError):
        return


def _has_ended(process: psutil.Process, seconds: float) -> bool:
    """Wait for the end of a process, whose parent may be another one that does not collect its status."""
    until = time.monotonic() + seconds
    while not has_ended(process):
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/models", timeout=5).status_code < 500
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    stop(Path(sys.argv[1]), at_once=sys.argv[2:] == ["kill"])
    start(Path(sys.argv[1]))
