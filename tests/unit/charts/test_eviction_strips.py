"""What every policy dropped of one prompt: shares of layers and heads, and the marks of question and needle."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab import charts
from kvlab.charts.eviction_strips import MAX_BINS
from kvlab.errors import RunError
from tests.chart_kit import data_of, evicted, marks


def strips(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return data_of(spec, next(unit for unit in marks(spec) if unit["mark"]["type"] == "rect"))


def of(*lost: tuple[int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(list(lost), schema=["layer", "head", "position"], orient="row")


def test_a_strip_has_the_share_of_heads_that_dropped_each_position() -> None:
    lost = of((0, 0, 4), (0, 0, 5), (0, 1, 4), (0, 1, 5), (1, 0, 4), (1, 1, 9))
    spec = charts.eviction_strips({"knorm": lost}, 12).to_dict()
    assert [(p["start"], p["stop"], p["gone"]) for p in strips(spec)] == [(4, 5, 0.75), (5, 6, 0.5), (9, 10, 0.25)]


def test_a_position_that_a_head_drops_counts_once() -> None:
    assert strips(charts.eviction_strips({"a": of((0, 0, 1), (0, 0, 1))}, 3).to_dict())[0]["gone"] == 1


def test_a_long_prompt_is_drawn_in_few_parts() -> None:
    lost = of(*((0, 0, position) for position in range(0, 32_000, 2)))
    parts = strips(charts.eviction_strips({"a": lost}, 32_000).to_dict())
    assert len(parts) <= MAX_BINS and {part["gone"] for part in parts} == {0.5}
    assert parts[0]["start"] == 0 and parts[-1]["stop"] == 32_000


def test_ten_policies_are_ten_strips_in_their_order_by_their_short_names() -> None:
    frames = {f"snapkv:budget=0.{i}": evicted() for i in range(1, 10)} | {"knorm": evicted()}
    sort = charts.eviction_strips(frames, 20).to_dict()["layer"][0]["encoding"]["y"]["sort"]
    assert sort == [*list(frames)[:9], "knorm:budget=0.5"]
    default = charts.eviction_strips({"knorm": evicted()}, 20, among=["knorm", "knorm:budget=0.25"]).to_dict()
    assert default["layer"][0]["encoding"]["y"]["sort"] == ["knorm:budget=0.5"], "named as among all policies of a run"


def test_question_and_needles_are_lines_with_names_and_a_note() -> None:
    spec = charts.eviction_strips({"a": evicted()}, 30, question=(20, 28), needles=[(4, 6), (9, 11)]).to_dict()
    lines, names = [data_of(spec, unit) for unit in marks(spec) if unit["mark"]["type"] in ("rule", "text")]
    assert sorted((one["what"], one["at"]) for one in lines) == [
        ("needle", 5), ("needle", 10), ("question", 20), ("question", 28),
    ]  # fmt: skip
    assert [one["what"] for one in names] == ["needle", "question"]
    assert "the question and the needle" in spec["title"]["subtitle"][0]


def test_without_marks_nothing_is_said_of_them() -> None:
    spec = charts.eviction_strips({"a": evicted()}, 30).to_dict()
    assert "needle" not in str(spec) and "question" not in str(spec)
    assert (
        charts.eviction_strips({"a": evicted()}, 30, needles=[(1, 2)])
        .to_dict()["title"]["subtitle"][0]
        .endswith("the needle.")
    )


def test_nothing_evicted_is_refused() -> None:
    with pytest.raises(RunError, match="nothing was evicted"):
        charts.eviction_strips({"full": evicted().head(0)}, 20)
