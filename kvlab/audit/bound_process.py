"""Starts a command that ends when another process, its owner, is gone: servers that nobody is left to stop.

``Popen(bound_command(["llama-server", ...]))`` starts it, and its pid is that of the command. A second process watches
the owner, on every system that psutil knows. It imports nothing of kvlab, so that it is small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

STOP_S = 60.0
"""After SIGTERM: a server may write KV to disk before its end."""

LOOK_S = 0.5
NOT_FOUND = 127
"""The status that a shell gives for a command that does not exist."""


def bound_command(
    command: Sequence[str], *, owner: int | None = None, stop_s: float = STOP_S, remove: Path | None = None
) -> list[str]:
    """Return a command line that runs ``command`` until it ends, or its owner is gone.

    Args:
        command: program and arguments.
        owner: the pid of the owner; None is this process.
        stop_s: seconds between SIGTERM and SIGKILL, once the owner is gone.
        remove: a folder that is removed then, once the command has ended.
    """
    pid = os.getpid() if owner is None else owner
    # -P: the folder of this file holds modules that are none of the standard library's
    return [sys.executable, "-P", str(Path(__file__).resolve()), str(pid), str(stop_s), str(remove or ""), *command]


def run(owner: int, stop_s: float, remove: str, command: Sequence[str]) -> None:
    """Become the command; a watcher is left beside it. Does not return."""
    me = os.getpid()
    if os.fork() == 0:
        if os.fork() == 0:
            _watch(owner, me, stop_s, remove)
        os._exit(0)  # the watcher is nobody's child: the command never collects its status
    os.wait()
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_FOUND)


def _watch(owner: int, command: int, stop_s: float, remove: str) -> None:
    """Wait until the command has ended or the owner is gone; then end the command, and this process."""
    with contextlib.suppress(Exception):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # whoever reads what the command writes waits for its end, not for this process
            os.dup2(nowhere, stream)
        os.chdir("/")
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(command)
            master = _process(owner)
            while not has_ended(server):
                if master is None or has_ended(master):
                    _end(server, stop_s)
                    if remove:
                        shutil.rmtree(remove, ignore_errors=True)
                    break
                time.sleep(LOOK_S)
    os._exit(0)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process is gone, or has ended and only its status is left to collect."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _end(process: psutil.Process, stop_s: float) -> None:
    process.terminate()
    until = time.monotonic() + stop_s
    while not has_ended(process):
        if time.monotonic() > until:
            process.kill()
            return
        time.sleep(LOOK_S)


if __name__ == "__main__":
    run(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
