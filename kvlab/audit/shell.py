"""Runs the user's command that restarts a server, and waits until the server answers again."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from kvlab.audit.alive import why_silent
from kvlab.audit.probe import Lab

BACK_LIMIT_S = 180.0
"""From starting the command until the server answers."""

DOWN_LIMIT_S = 30.0
"""Until a server that a running command restarts is seen down, or the command has ended."""

LOOK_S = 0.1
ASK_LIMIT_S = 30.0


@dataclass(frozen=True)
class Comeback:
    """How a restart went: seconds until the server answered, and what went wrong, in one line; empty where nothing."""

    seconds: float
    error: str = ""


def run_and_wait(lab: Lab, command: str, limit_s: float = BACK_LIMIT_S) -> Comeback:
    """Run a shell command that stops and starts the server; return when the server answers.

    The command may end, or go on as the new server. Its output is kept for the case that it fails.
    """
    began = lab.clock()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
        wait_until(lab, lambda: process.poll() is not None or not _accepts(lab), DOWN_LIMIT_S)
        back = wait_until(lab, lambda: process.poll() not in (None, 0) or _accepts_and_answers(lab), limit_s)
        seconds = lab.clock() - began
        if (status := process.poll()) not in (None, 0) and not _accepts_and_answers(lab):
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines()
            return Comeback(seconds, f"the command ended with status {status}: {said[-1] if said else 'no output'}")
    return Comeback(seconds, "" if back else f"the server did not answer within {limit_s:g} s of {command!r}")


def wait_until(lab: Lab, done: Callable[[], bool], limit_s: float) -> bool:
    """Look again and again until ``done`` or the limit; return whether it was done."""
    until = lab.clock() + limit_s
    while not done():
        if lab.clock() > until:
            return False
        lab.sleep(LOOK_S)
    return True


def _accepts(lab: Lab) -> bool:
    """Whether something answers at the address at all."""
    try:
        lab.client.http.get(f"{lab.client.url}/models", timeout=ASK_LIMIT_S)
    except httpx.HTTPError:
        return False
    return True


def _accepts_and_answers(lab: Lab) -> bool:
    return _accepts(lab) and not why_silent(lab, ASK_LIMIT_S)
