"""One client's stream while others send what costs most: it goes on, says the same, and newcomers are answered.

The product's promise: no gap of 0.5 s in a stream, and a newcomer is answered within 2 s. Times depend on the machine,
so they are part of the soak only, where nothing else should run; there only *charged* time is held against the server
(:class:`tests.victim.Wait`): time in which the client was run and the server used CPU. The time that passed is printed
beside it, with a loose limit of its own. An attack that breaks a bound is repeated, twice at most: a fault of the
server shows each time. On any machine the answers are right, the server lives on, and its memory stays within limits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.attacks.bodies import BODIES
from tests.attacks.sockets import SOCKETS
from tests.processes import ROOT, environment
from tests.server_kit import Served, stated_bytes
from tests.victim import QUESTIONS, Report, listen, question, resident, watch

MAX_GAP_S, MAX_FIRST_S = 0.5, 2.0
MAX_WALL_S = 30.0
"""For what a server waits for without using CPU, on a machine that runs many other things."""
MAX_RSS_GROWTH = 500_000_000
"""Bytes of RAM beyond those that the server states: bodies in flight, their parsed form, and connections."""
ATTEMPTS = 3
SECONDS = 12.0


class Attackers:
    """Attacks in a process of their own, of lower priority, for ``seconds``; they have begun when this is made."""

    def __init__(self, url: str, seconds: float, *names: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks", url, str(seconds), *names],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), preexec_fn=lambda: os.nice(5),
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "begin\n"

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def outcomes(self) -> dict[str, dict[str, int]]:
        """What came back, by attack; waits for their end."""
        printed, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, printed
        made: dict[str, dict[str, int]] = json.loads(printed)
        return made

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def attacked(server: Served, right: list[str], groups: Sequence[tuple[str, ...]], timed: bool) -> list[str]:
    """Attack for SECONDS, each group from a process of its own; return which bounds the server breaks.

    Bounds on time count where ``timed``.
    """
    process, before = server.process.pid, resident(server.process.pid)
    attackers = [Attackers(server.url, SECONDS, *names) for names in groups]
    try:
        report = watch(
            server.url,
            process,
            right,
            lambda: server.process.poll() is None and any(attacker.is_running for attacker in attackers),
        )
        if server.process.poll() is not None:
            return [f"the server ended with status {server.process.returncode}"]
        outcomes = {name: came for attacker in attackers for name, came in attacker.outcomes().items()}
    finally:
        for attacker in attackers:
            attacker.stop()
    print(outcomes, report, sep="\n")
    broken = [f"{name}: nothing came back" for name, came in outcomes.items() if not came]
    if timed:
        broken += late(report)
    if report.wrong:
        broken.append("other tokens than without attackers")
    if report.cut:
        broken.append(f"streams that ended early, with status {dict(report.cut)}")
    held, limits = stated_bytes(server)
    broken += [f"{name}: {held[name]} bytes held" for name in limits if held.get(name, 0) > limits[name]]
    if report.most_rss > before + sum(limits.values()) + MAX_RSS_GROWTH:
        broken.append(f"RSS grew from {before} to {report.most_rss} bytes, limits {limits}")
    return broken


def late(report: Report) -> list[str]:
    """Return which bounds on time are broken."""
    broken = []
    if report.gap.charged > MAX_GAP_S or report.gap.wall > MAX_WALL_S:
        broken.append("a gap in the stream")
    for what, wait in (("a first token", report.first), ("a newcomer's answer", report.newcomer)):
        if wait.charged > MAX_FIRST_S or wait.wall > MAX_WALL_S:
            broken.append(f"{what} that came late")
    if report.unanswered:
        broken.append(f"newcomers who got no answer, but status {dict(report.unanswered)}")
    return broken


def hold(home: Path, groups: Sequence[tuple[str, ...]], *, timed: bool) -> None:
    """Attack a new server, where ``timed`` up to ATTEMPTS times, until all bounds hold once."""
    broken: list[str] = []
    for _ in range(ATTEMPTS if timed else 1):
        with Served("--policy", "paged|ram:ram=64MB", home=home) as server:
            quiet = [listen(server.url, server.process.pid, question(i)) for i in range(len(QUESTIONS))]
            assert all(heard.complete for heard in quiet)
            right = [heard.text for heard in quiet]
            assert len({*right}) == len(right)
            print(f"alone: gaps {[round(1e3 * heard.gap.wall) for heard in quiet]} ms")
            broken = attacked(server, right, groups, timed)
            assert len(server.log) < 20_000, "a storm of log lines"
        if not broken:
            return
        print(f"broken: {broken}")
    raise AssertionError(broken)


MIXTURE = (tuple(BODIES), tuple(SOCKETS))


def test_answers_stay_right_beside_all_attackers_at_once(tmp_path: Path) -> None:
    hold(tmp_path, MIXTURE, timed=False)


@pytest.mark.soak
def test_a_stream_goes_on_beside_all_attackers_at_once(tmp_path: Path) -> None:
    hold(tmp_path, MIXTURE, timed=True)


@pytest.mark.soak
@pytest.mark.parametrize("name", [*BODIES, *SOCKETS])
def test_a_stream_goes_on_beside_one_kind_of_attackers(tmp_path: Path, name: str) -> None:
    hold(tmp_path, [(name,)], timed=True)
