"""The share of the CPU time that other programs take: measured from the system's counters, never from a hope."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvlab.experiments import machine_load
from kvlab.experiments.machine_load import MIN_WALL_S, CpuSeconds, LoadMeter, cpu_seconds
from kvlab.results.load import BUSY_SHARE, OTHER_LOAD, busy_note, joined_load


def readings(*seen: CpuSeconds | None) -> Callable[[], CpuSeconds | None]:
    return iter(seen).__next__


@pytest.mark.parametrize(
    ("busy", "own", "total", "share"),
    [
        (10.0, 10.0, 20.0, 0.0),  # all of it was this process
        (16.0, 10.0, 20.0, 0.3),
        (20.0, 0.0, 20.0, 1.0),
        (9.0, 10.0, 20.0, 0.0),  # the two counters tick apart
        (50.0, 0.0, 20.0, 1.0),
    ],
)
def test_others_are_what_is_busy_and_not_this_process(busy: float, own: float, total: float, share: float) -> None:
    meter = LoadMeter(readings(CpuSeconds(5, 1, 100, 2), CpuSeconds(5 + busy, 1 + own, 100 + total, 2)))
    assert meter.others() == share


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_a_moment_is_too_short_to_say(cpus: int) -> None:
    short, long = (MIN_WALL_S * cpus * factor for factor in (0.9, 1.1))
    for passed, known in ((short, False), (long, True)):
        meter = LoadMeter(readings(CpuSeconds(0, 0, 0, cpus), CpuSeconds(passed, 0, passed, cpus)))
        assert (meter.others() is not None) is known


def test_a_system_that_does_not_tell_gives_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LoadMeter(readings(None, None)).others() is None
    monkeypatch.setattr(machine_load.psutil, "cpu_times", lambda percpu: (_ for _ in ()).throw(OSError("no /proc")))
    assert cpu_seconds() is None


def test_counters_are_those_of_the_cpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Times:
        """One CPU's counters as macOS has them: no steal, no iowait."""

        def __init__(self, user: float) -> None:
            self.user, self.nice, self.system, self.idle = user, 0.0, 1.0, 10.0

    monkeypatch.setattr(machine_load.psutil, "cpu_times", lambda percpu: [Times(1), Times(2), Times(30)])
    monkeypatch.setattr(machine_load.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    seen = cpu_seconds()
    assert seen is not None and (seen.busy, seen.total, seen.cpus) == (5.0, 25.0, 2)
    monkeypatch.delattr(machine_load.os, "sched_getaffinity")
    everywhere = cpu_seconds()
    assert everywhere is not None and (everywhere.busy, everywhere.cpus) == (36.0, 3)


def test_real_counters_only_grow() -> None:
    first, second = cpu_seconds(), cpu_seconds()
    assert first is not None and second is not None
    assert 0 <= first.busy <= first.total and first.total <= second.total and first.own <= second.own


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({}, ""),
        ({"full": [BUSY_SHARE - 0.01]}, ""),
        ({"full": [BUSY_SHARE]}, "busy throughout: other programs took up to 15%"),
        ({"full": [0.0, 0.9], "paged": [0.2]}, "busy in 2 of 3 runs: other programs took up to 90%"),
    ],
)
def test_the_note_counts_busy_runs_and_is_silent_without(shares: dict[str, list[float]], says: str) -> None:
    note = busy_note({OTHER_LOAD: shares})
    assert says in note and bool(note) == bool(says)


def test_shares_of_several_runs_are_joined_by_policy() -> None:
    parts = [{OTHER_LOAD: {"full": [0.1]}}, {}, {OTHER_LOAD: {"full": [0.2], "paged": [0.3]}}]
    assert joined_load(parts) == {"full": [0.1, 0.2], "paged": [0.3]}
