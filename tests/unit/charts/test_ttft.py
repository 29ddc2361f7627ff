"""The parts of the time to first token, from events, and their waterfall."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvlab import charts
from kvlab.charts.ttft import PARTS
from kvlab.errors import RunError
from kvlab.recording import events
from kvlab.recording.recorder import Recorder
from kvlab.results import Results


def recorded() -> Results:
    """Two turns under one policy: the first waits 10 ms and computes, the second restores."""
    recorder = Recorder()
    emit = recorder.emit
    emit(events.Submitted(0, 1.0, 100, 8, {"turn": 1}))
    emit(events.Matched(0, 1.012, 0, {}, "never_seen", 0.002))
    emit(events.Prefilled(0, 1.05, 64, 64, 100))
    emit(events.Prefilled(0, 1.09, 36, 100, 100))
    emit(events.FirstToken(0, 1.2, 7, seconds=0.1, queued=0.01))
    emit(events.Submitted(1, 2.0, 120, 8, {"turn": 2}))
    emit(events.Matched(1, 2.006, 100, {"ram": 100}, "diverged_at=100", 0.002))
    emit(events.Restored(1, 2.006, 100, 4000, 0.004))
    emit(events.Prefilled(1, 2.016, 20, 20, 20))
    emit(events.FirstToken(1, 2.03, 7, seconds=0.02))
    return Results([], {}, {"paged": recorder})


def test_the_parts_add_up_to_the_time_to_first_token() -> None:
    parts = charts.ttft_parts(recorded().events)
    found = {(turn, part): round(ms, 3) for turn, part, ms in parts.select("turn", "part", "ms").iter_rows()}
    assert [found[1, part] for part in PARTS] == [10, 2, 0, 78, 10]
    assert [found[2, part] for part in PARTS] == [0, 2, 4, 10, 4]


def test_without_a_store_there_is_no_lookup() -> None:
    recorder = Recorder()
    recorder.emit(events.Submitted(0, 1.0, 10, 8, {"turn": 1}))
    recorder.emit(events.FirstToken(0, 1.1, 7, seconds=0.05, queued=0.01))
    parts = charts.ttft_parts(Results([], {}, {"full": recorder}).events)
    assert [round(ms, 3) for ms in parts["ms"]] == [10, 0, 0, 0, 40]


def test_an_older_record_is_refused() -> None:
    recorder = Recorder()
    recorder.emit(events.FirstToken(0, 1.1, 7))
    with pytest.raises(RunError, match="run the experiment again"):
        charts.ttft_parts(Results([], {}, {"full": recorder}).events)


def test_the_record_keeps_the_time_to_first_token(tmp_path: Path) -> None:
    results = recorded()
    results.save(tmp_path / "run")
    assert charts.ttft_parts(Results.load(tmp_path / "run").events).equals(charts.ttft_parts(results.events))


def test_the_waterfall_has_a_bar_a_turn() -> None:
    spec = charts.ttft_waterfall(charts.ttft_parts(recorded().events), turn=2).to_dict()
    assert spec["encoding"]["color"]["scale"]["domain"] == list(PARTS)
    assert spec["encoding"]["opacity"]["condition"]["test"] == "(datum.turn === 2)"
    bars = next(iter(spec["datasets"].values()))
    assert {bar["turn"] for bar in bars} == {1, 2}
    with pytest.raises(RunError, match="no turns of full; known are paged"):
        charts.ttft_waterfall(charts.ttft_parts(recorded().events), policies=["full"])
