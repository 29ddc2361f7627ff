"""Quality: right answers by policy and kind, and against bytes."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab import charts
from kvlab.charts.direct_labels import LETTER_WIDTH
from kvlab.charts.style import HEIGHT
from kvlab.errors import RunError
from kvlab.results import row
from tests.chart_kit import data_of, frame, marks, rows, values


def answers(policy: str, scores: tuple[float, ...], live: float) -> list[dict[str, Any]]:
    made = []
    for seed, score in enumerate(scores):
        where: dict[str, Any] = {"seed": seed, "turn": 1, "kind": "retrieve"}
        made.append(row(policy, "retrieval", "accuracy", score, **where))
        made.append(row(policy, "retrieval", "kv_bytes_live", live, **where))
    return made


def test_accuracy_has_a_group_for_each_kind() -> None:
    spec = charts.accuracy_by_policy(rows("full", "rotating", kinds=("call", "recall"))).to_dict()
    assert spec["facet"]["field"] == "kind"
    bars = {(p["policy"], p["kind"]): p["score"] for p in data_of(spec, spec)}
    assert bars == {
        (p, kind): score for p in ("full", "rotating") for kind, score in (("call", "0/1"), ("recall", "2/2"))
    }
    assert "facet" not in charts.accuracy_by_policy(rows("full")).to_dict()


def test_quality_has_a_point_a_policy_and_a_line_a_method() -> None:
    rows = frame(
        *answers("full", (1.0, 1.0), 3e6),
        *answers("snapkv:budget=0.1", (0.5, 1.0), 3e5),
        *answers("snapkv", (1, 1), 1e6),
    )
    spec = charts.quality_by_live_bytes(rows, {"snapkv": "0.5"}).to_dict()
    points = {point["policy"]: point for point in values(spec, marks(spec)[0])}
    assert (
        points["snapkv:budget=0.1"] | {"method": "snapkv", "accuracy": 0.75, "low": 0.5, "high": 1.0, "bytes": 0.3}
        == (points["snapkv:budget=0.1"])
    )
    assert points["snapkv:budget=0.5"]["setting"] == "0.5" and points["full"]["setting"] == ""
    assert {unit["mark"]["type"] for unit in marks(spec)} == {"rule", "line", "point", "text"}
    assert marks(spec)[0]["encoding"]["color"]["field"] == "method"


def test_settings_cover_no_point_no_line_and_no_other_setting() -> None:
    """Methods that meet at 100 % and at 0 %, where the axis is: each setting stands where nothing else does."""
    runs = {f"snapkv:budget=0.{i}": (1.0, 3e5 + 1e5 * i) for i in range(1, 6)}
    runs |= {f"quantized:bits={bits}": (1.0, 1e5 * bits) for bits in (2, 4, 8)}
    runs |= {f"{name}:budget=0.{i}": (0.0, 3e5 + 1e5 * i) for name in ("random", "knorm") for i in (1, 2)}
    made = frame(*(one for policy, (score, live) in runs.items() for one in answers(policy, (score,), live)))
    spec = charts.quality_by_live_bytes(made, {policy: policy[-3:] for policy in runs}).to_dict()
    names = [one for unit in marks(spec) if unit["mark"]["type"] == "text" for one in data_of(spec, unit)]
    boxes = []
    for one in names:
        width = LETTER_WIDTH * len(one["name"][0])
        left = one["x"] if one["align"] == "left" else one["x"] - width
        boxes.append((left, one["y"] - 5, left + width, one["y"] + 5))
    assert len(boxes) == len(runs)
    points = [(one["from"], one["from_y"]) for one in names]
    across = range(int(min(x for x, _ in points)), int(max(x for x, _ in points)))
    lines = [(x, y) for x in across for y in {y for _, y in points}]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert bottom < HEIGHT, "the axis stands below"
        assert not [p for p in [*points, *lines] if left < p[0] < right and top < p[1] < bottom], names[i]
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def quality(metric: str) -> pl.DataFrame:
    """Of one sequence 4 MB, or of two together 8 MB."""
    turn, together = row("full", "w", "kv_bytes_live", 4e6, turn=1), row("full", "w", "kv_bytes_live", 8e6)
    return frame(turn, together, row("full", "w", metric, 1.0), row("full", "w", metric, 0.5))


@pytest.mark.parametrize("metric", ["accuracy", "kl"])
def test_quality_is_a_point_a_policy(metric: str) -> None:
    spec = charts.quality_by_bytes(quality(metric), metric).to_dict()
    (point,) = next(iter(spec["datasets"].values()))
    assert (point["bytes"], point["quality"]) == (4.0, 0.75)


@pytest.mark.parametrize(("metric", "says"), [("taste", "no quality 'taste'"), ("kl", "no kl beside")])
def test_quality_that_is_not_there(metric: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        charts.quality_by_bytes(quality("accuracy"), metric)
