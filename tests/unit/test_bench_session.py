"""A benchmark's time budget, by an injected clock: how many rounds, how long, and what it says it left out."""

import math
from collections.abc import Iterator
from typing import Any

import pytest

from kvlab.bench.session import BenchSession

ABOUT = {"workload": "shared", "n": 8, "model": "toy"}


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(clock: Clock) -> Iterator[BenchSession]:
    with BenchSession("toy", 60, clock=clock) as session:
        yield session


def _run(session: BenchSession, clock: Clock, most: int, seconds: float, each: float, **options: Any) -> list[int]:
    rounds = []
    for number in session.rounds(most, seconds, ABOUT, **options):
        rounds.append(number)
        clock.now += each
    return rounds


def test_all_rounds_take_place_where_there_is_time(session: BenchSession, clock: Clock) -> None:
    assert _run(session, clock, 3, 60, 1) == [0, 1, 2, 3]
    assert session.skipped == []


def test_rounds_end_before_one_that_would_take_too_long(session: BenchSession, clock: Clock) -> None:
    assert _run(session, clock, 9, 10, 3) == [0, 1, 2]
    row = {"policy": "", **ABOUT, "metric": "skipped", "value": 7, "unit": "rounds", "reason": "time"}
    assert session.skipped == [row]


def test_one_measured_round_takes_place_however_slow_it_is(session: BenchSession, clock: Clock) -> None:
    assert _run(session, clock, 3, 1, 500) == [0, 1]
    assert session.skipped[0]["value"] == 2


def test_rounds_without_a_warm_up_begin_at_one(session: BenchSession, clock: Clock) -> None:
    assert _run(session, clock, 2, 60, 1, warm_up=False) == [1, 2]


def test_parts_hand_on_what_earlier_ones_saved(session: BenchSession, clock: Clock) -> None:
    shares = []
    for item, share in session.parts("abc"):
        shares.append((item, share))
        clock.now += 2 if item == "a" else 100
    assert shares == [("a", 20), ("b", 29), ("c", 0)]
    assert session.is_over


def test_parts_of_a_part_share_its_seconds(session: BenchSession, clock: Clock) -> None:
    for _, share in session.parts([1, 2]):
        assert [inner for _, inner in session.parts("abc", share)] == [10, 15, 30]
        break


def test_budget_without_end_leaves_everything_as_it_is(clock: Clock) -> None:
    with BenchSession("toy", math.inf, clock=clock) as session:
        for _, share in session.parts([1, 2]):
            assert _run(session, clock, 5, share, 1e6) == [0, 1, 2, 3, 4, 5]
            assert session.fit(192, share, 1e6, least=8, about=ABOUT, unit="tokens") == 192
        assert session.skipped == [] and not session.is_over


def test_sizes_are_fitted_to_the_seconds_and_a_row_says_what_is_missing(session: BenchSession) -> None:
    def fit(seconds: float) -> int:
        return session.fit(192, seconds, 0.5, least=8, about=ABOUT, unit="answer tokens")

    assert fit(1000) == 192 and session.skipped == []
    assert fit(30) == 60
    assert fit(0.1) == 8, "never below the least"
    assert [(row["value"], row["unit"]) for row in session.skipped] == [(132, "answer tokens"), (184, "answer tokens")]
    assert session.fit(4, 0.1, 0.5, least=8, about=ABOUT, unit="tokens") == 4, "nor above what was wanted"


def test_bar_and_what_is_skipped_are_on_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with BenchSession("toy", 60, clock=clock) as session:
        _run(session, clock, 9, 10, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert "bench toy:" in err and "/60" in err
    assert "bench toy: shared n=8 of toy: 7 rounds left out (time)" in err
