"""Hit ratio by capacity: lines, names at their ends, the limit, and both pages."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab import charts
from kvlab.charts.policy_styles import FREE
from kvlab.errors import RunError
from tests.chart_kit import data_of, marks


def measured(*names: str, limit: float = 0.6) -> pl.DataFrame:
    rows: list[dict[str, Any]] = [{"replace": "unlimited", "share": 1.0, "value": limit}]
    for place, name in enumerate(names):
        rows += [
            {"replace": name, "share": share, "value": share**0.5 * (0.5 - 0.04 * place)} for share in (0.01, 0.1, 0.5)
        ]
    return pl.DataFrame([row | {"metric": "hit_ratio_blocks", "trace": "chat"} for row in rows])


def units(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [unit for unit in marks(spec) if unit["mark"].get("type") == kind]


def test_every_policy_has_a_line_a_point_for_each_capacity_and_its_name() -> None:
    spec = charts.hit_ratio_by_capacity(measured("lru", "sieve")).to_dict()
    (points,) = units(spec, "point")
    assert len(data_of(spec, points)) == 6
    names = [
        one["name"] for unit in units(spec, "text") if "data" in unit for one in data_of(spec, unit) if "name" in one
    ]
    assert sorted(names) == [["lru"], ["sieve"]]
    assert spec["title"]["text"] == "Hit ratio by capacity: chat"


def test_colours_are_those_of_the_palette_and_have_dark_tones() -> None:
    spec = charts.hit_ratio_by_capacity(measured("lru", "sieve", "belady")).to_dict()
    scale = units(spec, "line")[0]["encoding"]["color"]["scale"]
    assert dict(zip(scale["domain"], scale["range"], strict=True)) == {
        name: tone.light for name, tone in zip(("lru", "sieve", "belady"), FREE, strict=False)
    }
    dark = units(charts.on_dark(spec), "line")[0]["encoding"]["color"]["scale"]["range"]
    assert dark == [tone.dark for tone in FREE[:3]]


def test_more_policies_than_colours_are_told_apart_by_dashes() -> None:
    names = [f"p{i}" for i in range(len(FREE) + 2)]
    spec = charts.hit_ratio_by_capacity(measured(*names)).to_dict()
    encoding = units(spec, "line")[0]["encoding"]
    looks = list(
        zip(encoding["color"]["scale"]["range"], map(str, encoding["strokeDash"]["scale"]["range"]), strict=True)
    )
    assert len(set(looks)) == len(names)
    assert "strokeDash" not in units(charts.hit_ratio_by_capacity(measured("lru")).to_dict(), "line")[0]["encoding"]


def test_a_whole_curve_is_drawn_in_the_place_of_the_line_between_points() -> None:
    curve = pl.DataFrame({"replace": ["lru"] * 50, "share": [i / 50 for i in range(1, 51)], "value": [0.3] * 50})
    spec = charts.hit_ratio_by_capacity(measured("lru", "sieve"), curve).to_dict()
    drawn = data_of(spec, units(spec, "line")[0])
    assert sum(one["policy"] == "lru" for one in drawn) == 25, "from the least capacity to the greatest"
    assert sum(one["policy"] == "sieve" for one in drawn) == 3


def test_what_no_limit_hits_is_a_dashed_rule() -> None:
    spec = charts.hit_ratio_by_capacity(measured("lru", limit=0.7)).to_dict()
    rule = next(unit for unit in units(spec, "rule") if "strokeDash" in unit["mark"])
    assert data_of(spec, rule) == [{"value": 0.7}]


def test_one_capacity_can_be_drawn() -> None:
    import vl_convert

    spec = charts.hit_ratio_by_capacity(measured("lru").filter(pl.col("share") != 0.1).head(2)).to_dict()
    assert vl_convert.vegalite_to_svg(spec).count("<path") > 3


def test_rows_without_ratios_are_refused() -> None:
    with pytest.raises(RunError, match="kvlab replay --json"):
        charts.hit_ratio_by_capacity(measured())
