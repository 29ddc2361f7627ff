"""What a restart costs, beside the same turn without one."""

from __future__ import annotations

import pytest

from kvlab import charts
from kvlab.errors import RunError
from kvlab.results import row
from tests.chart_kit import frame, marks, values


def test_a_restart_stands_beside_the_same_turn_without_one() -> None:
    rows = [row("full", "agent", "ttft_ms", 100.0 * turn, turn=turn, phase="cold") for turn in (1, 2)]
    rows += [row("tiered", "agent", "ttft_ms", 9.0 + i, turn=2, phase="restart", repeat=i) for i in (0, 1)]
    spec = charts.ttft_after_restart(frame(*rows)).to_dict()
    bars = {bar["who"]: bar for bar in values(spec, marks(spec)[0])}
    assert (bars["full, same process"]["value"], bars["tiered, new process"]["value"]) == (200, 9.5)
    assert (bars["tiered, new process"]["low"], bars["tiered, new process"]["high"]) == (9, 10)
    with pytest.raises(RunError, match="restart = true"):
        charts.ttft_after_restart(frame(*rows[:2]))
