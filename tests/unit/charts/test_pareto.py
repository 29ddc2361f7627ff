"""Quality against bytes: who is on the Pareto line, and labels that can be read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab import charts
from kvlab.charts.pareto import WIDTH, pareto_points
from kvlab.errors import RunError
from kvlab.results import Row, row
from tests.chart_kit import data_of, frame, marks


def measured(policy: str, megabytes: float, quality: float, metric: str = "accuracy") -> list[Row]:
    earlier = row(policy, "own", "kv_bytes_live", 9e9, turn=1, conversation="c")
    at = {"turn": 2, "conversation": "c"}
    return [
        earlier,
        row(policy, "own", "kv_bytes_live", megabytes * 1e6, **at),
        row(policy, "own", metric, quality, **at),
    ]


def drawn(*runs: list[Row], metric: str = "accuracy", **options: Any) -> dict[str, Any]:
    return charts.quality_with_pareto(frame(*(one for part in runs for one in part)), metric, **options).to_dict()


def labels_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for unit in marks(spec) if unit["mark"].get("type") == "text" for one in data_of(spec, unit)]


def test_the_line_holds_what_no_other_policy_beats_in_both() -> None:
    rows = [measured("full", 8, 1), measured("q4", 1, 1), measured("q2", 0.5, 0.4), measured("knorm", 4, 0.3)]
    points = pareto_points(frame(*(one for part in rows for one in part)))
    assert {p.policy: p.on_line for p in points} == {"full": False, "q4": True, "q2": True, "knorm": False}
    assert [p.megabytes for p in points] == [8, 1, 0.5, 4], "bytes are those of the last turn, as in the table"


def test_equal_policies_are_all_on_the_line() -> None:
    points = pareto_points(frame(*measured("paged", 8, 1), *measured("tiered", 8, 1)))
    assert all(point.on_line for point in points)


def test_of_kl_the_lower_is_the_better() -> None:
    points = pareto_points(
        frame(*measured("q8", 4, 0.01, "kl"), *measured("q4", 2, 0.2, "kl"), *measured("bad", 4, 0.5, "kl")), "kl"
    )
    assert [point.on_line for point in points] == [True, True, False]
    assert (
        "Down and left"
        in drawn(measured("a", 1, 1, "kl"), measured("b", 2, 0, "kl"), metric="kl")["title"]["subtitle"][0]
    )


POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4)), min_size=1, max_size=8)


@given(POINTS)
def test_every_point_beside_the_line_is_beaten_by_one_on_it(points: list[tuple[int, int]]) -> None:
    made = pareto_points(frame(*(one for i, (mb, q) in enumerate(points) for one in measured(f"p{i}", mb, q / 4))))
    line = [point for point in made if point.on_line]
    assert line
    for point in made:
        beaten = [p for p in line if p.megabytes <= point.megabytes and p.quality >= point.quality and p != point]
        strictly = [p for p in beaten if (p.megabytes, p.quality) != (point.megabytes, point.quality)]
        assert bool(strictly) is not point.on_line


def test_points_on_one_place_share_a_label() -> None:
    spec = drawn(measured("full", 8, 1), measured("paged", 8, 1), measured("tiered", 8.01, 1))
    assert [label["name"] for label in labels_of(spec)] == [["full, paged, tiered"]]
    many = drawn(*(measured(f"snapkv:budget=0.{i}", 8, 1) for i in range(1, 6)))
    assert " ".join(labels_of(many)[0]["name"]).endswith(" and 2 more")


def test_labels_of_ten_policies_near_each_other_cover_none() -> None:
    """Ten policies at nearly one quality: every label keeps a line of its own."""
    boxes = []
    for label in labels_of(drawn(*(measured(f"snapkv:budget=0.{i:02d}", 1 + 0.12 * i, 1) for i in range(10)))):
        width = 5.5 * len(label["name"][0])
        boxes.append((label["x"] if label["align"] == "left" else label["x"] - width, label["y"], width))
    assert len(boxes) == 10
    for i, (x, y, width) in enumerate(boxes):
        assert x >= -1 and x + width <= WIDTH + 20
        for other_x, other_y, other_width in boxes[:i]:
            assert abs(y - other_y) > 10 or x + width <= other_x or other_x + other_width <= x


def test_labels_do_not_cover_the_line() -> None:
    """The first step to the right of a point is the line's: its label goes above or below."""
    q2, q4 = labels_of(drawn(measured("quantized:bits=2", 1, 0.4), measured("quantized:bits=4", 9, 1)))
    assert {tuple(q2["name"]), tuple(q4["name"])} == {("quantized:bits=2",), ("quantized:bits=4",)}
    low = q2 if q2["name"] == ["quantized:bits=2"] else q4
    assert low["y"] != low["from_y"]


def test_bytes_over_a_wide_range_are_drawn_on_a_logarithmic_axis() -> None:
    wide = drawn(measured("a", 0.1, 1), measured("b", 100, 1))
    assert wide["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"
    assert drawn(measured("a", 1, 1), measured("b", 8, 1))["layer"][0]["encoding"]["x"]["scale"]["type"] == "linear"


def test_points_tell_themselves_apart_without_colour() -> None:
    spec = drawn(measured("full", 8, 1), measured("knorm", 9, 0.5))
    filled = [unit["mark"]["filled"] for unit in marks(spec) if unit["mark"].get("type") == "point"]
    assert sorted(filled) == [False, True]


def test_rows_without_both_are_refused() -> None:
    with pytest.raises(RunError, match="no accuracy beside kv_bytes_live"):
        charts.quality_with_pareto(frame(row("full", "own", "accuracy", 1, turn=1)))
