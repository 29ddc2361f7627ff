"""The panel on designs: what agents wait for, who fits in memory, and who wins."""

from __future__ import annotations

import polars as pl
import pytest

from kvlab.errors import RunError
from kvlab.recording import events
from kvlab.recording.recorder import Recorder
from kvlab.results import Results, row
from kvlab.widgets import which_design_wins
from kvlab.widgets.designs import crowd_rows, waits
from tests.stack_rows import TIERED, stack_rows

ROWS = stack_rows()
TURNS, AGENTS = (ROWS.filter(workload=part) for part in ("stack-turns", "stack-agents"))


def test_waits_are_sums_of_turns_and_the_95th_of_a_hundred_and_memory_is_that_of_all_together() -> None:
    found = waits(TURNS, AGENTS, agents=8, turns=2, memory=1)
    by = {row["policy"]: row for row in found.iter_rows(named=True)}
    first_two = [TURNS.filter(policy="omlx", metric="ttft_ms", turn=turn)["value"].mean() for turn in (1, 2)]
    assert by["omlx"]["session_ms"] == pytest.approx(sum(first_two))  # type: ignore[arg-type]
    assert by["ollama"]["p95_ms"] > 7 * by["mlx-lm"]["p95_ms"], "one after the other"
    assert [by[name]["live_mb"] for name in ("ollama", "omlx", TIERED)] == pytest.approx([0.1, 0.8, 0.4])
    large = AGENTS.with_columns(value=pl.when(metric="kv_bytes_live").then(pl.col("value") * 10).otherwise("value"))
    some = waits(TURNS, large, agents=8, turns=2, memory=5).filter("fits")["policy"].to_list()
    assert TIERED in some and "ollama" in some and "omlx" not in some, "who runs one at a time holds one"


def test_the_winner_is_named_and_changes_with_the_choice() -> None:
    panel = which_design_wins(TURNS, AGENTS)
    assert panel.values == {"agents": 32, "turns": 15, "memory": 1000}
    assert "over 15 turns of one: <b><code>tiered</code></b>" in panel.drawn.note and not panel.message
    panel.set(turns=2, memory=1)
    assert "Too large for 1 MB" in panel.drawn.note and "<code>mlx-lm</code>" in panel.drawn.note
    assert not panel.message and panel.drawn.chart is not None


def test_requests_that_wait_hold_nothing_and_those_that_run_together_are_added() -> None:
    def run(starts: tuple[float, float]) -> float:
        recorder = Recorder()
        for request, start in enumerate(starts):
            recorder.emit(events.Submitted(request, 0.0, 1, 3, {"policy": "full"}))
            for step in (1, 2):
                recorder.emit(events.Token(request, start + step, 7, step, 100))
            recorder.emit(events.Finished(request, start + 2, "length", 3, 100))
        found = crowd_rows({2: Results([row("full", "agent", "ttft_ms", 1.0)], {}, {"full": recorder})})
        return float(found.filter(kind="together", n=2)["value"][0])

    assert (run((1.0, 5.0)), run((1.0, 1.5))) == (100, 200)


def test_where_nothing_fits_no_design_wins() -> None:
    large = AGENTS.with_columns(value=pl.when(metric="kv_bytes_live").then(1e9).otherwise("value"))
    panel = which_design_wins(TURNS, large)
    panel.set(memory=10)
    assert panel.drawn.note == "Under no design do 32 agents fit in 10 MB." and not panel.message


def test_rows_without_times_are_refused() -> None:
    with pytest.raises(RunError, match="no times to first token by 'n'; give rows of kvlab.compare"):
        which_design_wins(TURNS, AGENTS.filter(pl.col("metric") != "ttft_ms"))
