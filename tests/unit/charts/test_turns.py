"""Charts by turn: lines, bands, diamonds, the prompt beside what was cached."""

from __future__ import annotations

import polars as pl
import pytest

from kvlab import charts
from kvlab.errors import RunError
from kvlab.results import Results, row
from tests.chart_kit import data_of, marks, rows


def test_ttft_by_turn() -> None:
    spec = charts.ttft_by_turn(rows("full", "tiered", restart="tiered")).to_dict()
    assert spec["title"]["text"] == "Time to first token by turn"
    lines = [unit for unit in marks(spec) if unit["mark"]["type"] == "line"]
    assert len(lines) == 2
    assert lines[0]["encoding"]["y"]["title"] == "time to first token (ms)"
    assert lines[0]["encoding"]["y"]["scale"]["domain"][0] == 0
    assert lines[0]["mark"]["strokeWidth"] > lines[1]["mark"]["strokeWidth"]
    points = {(p["policy"], p["turn"]): p["value"] for p in data_of(spec, lines[0])}
    assert points["tiered", 2] == 20 and len(points) == 6
    (diamond,) = (unit for unit in marks(spec) if unit["mark"].get("shape") == "diamond")
    assert [(p["policy"], p["turn"]) for p in data_of(spec, diamond)] == [("tiered", 2)]


def test_ttft_without_a_restart_has_no_diamond_and_may_be_logarithmic() -> None:
    spec = charts.ttft_by_turn(rows("full"), log=True).to_dict()
    assert not any(unit["mark"].get("shape") == "diamond" for unit in marks(spec))
    assert marks(spec)[1]["encoding"]["y"]["scale"]["type"] == "log"


def test_repeats_give_a_band_around_the_mean() -> None:
    spec = charts.ttft_by_turn(rows("full", conversations=3)).to_dict()
    (band,) = (unit for unit in marks(spec) if unit["mark"]["type"] == "area")
    first = data_of(spec, band)[0]
    assert (first["low"], first["value"], first["high"], first["count"]) == (10, 11, 12, 3)


def test_a_logarithmic_axis_has_no_place_for_nothing() -> None:
    with pytest.raises(RunError, match="without log=True"):
        charts.ttft_by_turn(rows("full").with_columns(value=pl.lit(0.0)), log=True)


def test_repeats_of_one_turn_are_drawn_as_their_median() -> None:
    """One sample that a busy machine made slow moves the range, not the line."""
    times = (10.0, 11.0, 900.0)
    made = [row("full", "agent", "ttft_ms", ms, turn=1, phase="cold", repeat=i) for i, ms in enumerate(times)]
    spec = charts.ttft_by_turn(Results(made, {}).frame()).to_dict()
    (point,) = data_of(spec, next(unit for unit in marks(spec) if unit["mark"]["type"] == "line"))
    assert (point["low"], point["value"], point["high"]) == (10, 11, 900)


def test_each_line_is_named_at_its_end() -> None:
    spec = charts.ttft_by_turn(rows("full", "snapkv", "snapkv:budget=0.25")).to_dict()
    names = [one["name"] for unit in marks(spec) if unit["mark"]["type"] == "text" for one in data_of(spec, unit)]
    assert names == [["full"], ["snapkv:budget=0.5"], ["snapkv:budget=0.25"]]


def test_cached_tokens_stand_beside_the_prompt() -> None:
    spec = charts.cached_tokens_by_turn(rows("full", "paged")).to_dict()
    dashed = marks(spec)[0]
    assert dashed["mark"]["strokeDash"] == [5, 4]
    assert [p["value"] for p in data_of(spec, dashed)] == [6, 12, 18]
