"""The chart of all methods by a measure: order, frames, axes."""

from __future__ import annotations

import polars as pl
import pytest

from kvlab import charts
from kvlab.errors import RunError

COLUMNS = ["measure", "method", "budget", "value", "low", "high"]


def summary(*made: tuple[str, str, float, float]) -> pl.DataFrame:
    rows = [(measure, method, budget, value, value / 2, 2 * value) for measure, method, budget, value in made]
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def test_methods_stand_between_oracle_and_random_the_best_on_top() -> None:
    rows = summary(
        ("KL", "random", 0.5, 0.2), ("KL", "worse", 0.5, 0.9), ("KL", "better", 0.5, 0.1), ("KL", "oracle", 0.5, 0.15)
    )  # fmt: skip
    (panel,) = charts.measures_by_method(rows, "KL").to_dict()["hconcat"]
    lines, bars, points = panel["layer"]
    assert points["encoding"]["y"]["sort"] == ["oracle", "better", "worse", "random"]
    assert (bars["encoding"]["x"]["field"], bars["encoding"]["x2"]["field"]) == ("low", "high")
    assert points["encoding"]["x"]["scale"]["type"] == "log"
    assert lines["mark"]["strokeDash"]


def test_more_equal_calls_are_better_and_every_measure_has_a_panel() -> None:
    rows = summary(
        ("name flips", "a", 0.5, 0.1), ("name flips", "b", 0.5, 0.2),
        ("equal calls", "a", 0.5, 0.3), ("equal calls", "b", 0.5, 0.7),
    )  # fmt: skip
    panels = charts.measures_by_method(rows, "calls").to_dict()["hconcat"]
    assert [panel["title"]["text"] for panel in panels] == ["name flips", "equal calls"]
    assert panels[1]["layer"][2]["encoding"]["y"]["sort"] == ["b", "a"]
    assert "type" not in panels[1]["layer"][2]["encoding"]["x"]["scale"]


def test_a_summary_that_cannot_be_drawn_is_refused() -> None:
    rows = summary(("KL", "a", 0.25, 0.1), ("KL", "a", 0.5, 0.1), ("KL", "a", 0.75, 0.1))
    with pytest.raises(RunError, match="the rows have 3: filter them"):
        charts.measures_by_method(rows, "KL")
    with pytest.raises(RunError, match="nothing to draw"):
        charts.measures_by_method(rows.head(0), "KL")
