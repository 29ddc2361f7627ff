"""Charts of teacher-forced workloads: panels with intervals, and the distance by position."""

from __future__ import annotations

import polars as pl
import pytest

from kvlab import charts
from kvlab.errors import RunError
from kvlab.results import row
from tests.chart_kit import data_of, frame, marks


def summary(*measures: str) -> pl.DataFrame:
    made = [
        {"policy": policy, "measure": measure, "metric": "kl", "kind": None, "value": v,
         "low": v / 2, "high": v * 2, "items": 3}
        for policy, v in (("full", 0.0), ("quantized:bits=4", 0.1), ("snapkv", 0.3))
        for measure in measures
    ]  # fmt: skip
    return pl.DataFrame(made)


def test_tools_have_a_panel_a_measure_with_a_point_and_a_bar_a_policy() -> None:
    spec = charts.tools_by_policy(summary("equal calls", "name flips", "prose KL", "name KL")).to_dict()
    titles = [marks(panel)[1]["encoding"]["x"]["title"] for panel in spec["hconcat"]]
    assert titles == ["name flips", "equal calls", "prose KL (nats)"]
    for panel in spec["hconcat"]:
        rule, point = marks(panel)
        assert (rule["mark"]["type"], point["mark"]["type"]) == ("rule", "point")
        assert rule["encoding"]["x2"]["field"] == "high"
        assert rule["encoding"]["y"]["sort"] == ["full", "quantized:bits=4", "snapkv"]
        drawn = data_of(spec, panel if "data" in panel else rule)
        assert {one["policy"]: (one["low"], one["value"]) for one in drawn}["snapkv"] == (0.15, 0.3)
    assert spec["hconcat"][1]["layer"][0]["encoding"]["y"]["axis"] is None  # policies are named once


def test_each_workload_has_a_row_of_panels_under_its_name() -> None:
    parts = [
        summary("equal calls", "name flips").with_columns(pl.lit("calls").alias("workload")),
        summary("equal calls", "prose KL").with_columns(pl.lit("conversations").alias("workload")),
    ]
    spec = charts.tools_by_policy(pl.concat(parts)).to_dict()
    assert [row["title"]["text"] for row in spec["vconcat"]] == ["calls", "conversations"]
    drawn = [[marks(panel)[1]["encoding"]["x"]["title"] for panel in row["hconcat"]] for row in spec["vconcat"]]
    assert drawn == [["name flips", "equal calls"], ["equal calls", "prose KL (nats)"]]


def test_distance_by_position_has_a_line_a_policy() -> None:
    rows = frame(
        *(row(p, "kl:x", "kl", at / 10, kind="together", position=at) for p in ("a", "b") for at in (1, 2, 4)),
        row("a", "kl:x", "kl", 5.0, kind="text", conversation="c"),
    )
    spec = charts.kl_by_position(rows).to_dict()
    line = marks(spec)[0]
    drawn = data_of(spec, line if "data" in line else spec)
    assert {(one["policy"], one["position"]) for one in drawn} == {(p, at) for p in ("a", "b") for at in (1, 2, 4)}


def test_frames_without_what_is_drawn_are_refused() -> None:
    with pytest.raises(RunError, match="none of the measures"):
        charts.tools_by_policy(summary("KL"))
    with pytest.raises(RunError, match="no column 'low'"):
        charts.tools_by_policy(summary("name flips").drop("low"))
    with pytest.raises(RunError, match="no kl by position"):
        charts.kl_by_position(frame(row("a", "w", "kl", 1.0)))
