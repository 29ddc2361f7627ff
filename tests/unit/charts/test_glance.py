"""The table of ranks: who is best where, ties as they are shown, and every value in the picture."""

from __future__ import annotations

import polars as pl

from kvlab.charts.glance import at_a_glance, ranks


def cells() -> pl.DataFrame:
    values = {"TTFT": (False, {"a": 10.0, "b": 10.2, "c": 30.0}), "kept": (True, {"a": 0.5, "b": 1.0, "c": 0.0})}
    return pl.DataFrame(
        [
            {"policy": policy, "measure": name, "value": value, "shown": f"{value:.0f}", "more_is_better": more}
            for name, (more, found) in values.items()
            for policy, value in found.items()
        ]
    )


def test_values_that_are_shown_as_equal_are_equally_good() -> None:
    found = ranks(cells()).filter(pl.col("measure") == "TTFT").sort("policy")
    assert found["score"].to_list() == [1, 1, 0]


def test_more_is_better_where_it_is_said() -> None:
    found = dict(ranks(cells()).filter(pl.col("measure") == "kept").select("policy", "score").iter_rows())
    assert found["b"] == 1 and found["c"] < 1


def test_a_measure_that_tells_nobody_apart_makes_all_the_best() -> None:
    same = cells().with_columns(pl.lit(1.0).alias("value"), pl.lit("1").alias("shown"))
    assert set(ranks(same)["score"]) == {1}


def test_every_candidate_and_measure_has_its_cell() -> None:
    spec = at_a_glance(cells(), "Six").to_dict()
    (data,) = spec["datasets"].values()
    assert {(one["policy"], one["measure"]) for one in data} == {(p, m) for p in "abc" for m in ("TTFT", "kept")}
    assert spec["layer"][0]["encoding"]["y"]["sort"] == ["a", "b", "c"]
