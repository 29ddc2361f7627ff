"""Charts of the figures: quality by bytes, restarts, tiers, and the bars of repeats."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab.charts import concurrency as scale_charts
from kvlab.charts import quality as quality_charts
from kvlab.charts import restart as restart_charts
from kvlab.charts import tiers as tier_charts
from kvlab.errors import RunError
from kvlab.results import Results, row
from tests.unit.test_charts import data_of, marks


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return Results(list(rows), {}).frame()


def answers(policy: str, scores: tuple[float, ...], live: float) -> list[dict[str, Any]]:
    made = []
    for seed, score in enumerate(scores):
        where: dict[str, Any] = {"seed": seed, "turn": 1, "kind": "retrieve"}
        made.append(row(policy, "retrieval", "accuracy", score, **where))
        made.append(row(policy, "retrieval", "kv_bytes_live", live, **where))
    return made


def values(spec: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    return data_of(spec, part if "data" in part else {**part, "data": spec["data"]})


def test_quality_has_a_point_a_policy_and_a_line_a_method() -> None:
    rows = frame(
        *answers("full", (1.0, 1.0), 3e6),
        *answers("snapkv:budget=0.1", (0.5, 1.0), 3e5),
        *answers("snapkv", (1, 1), 1e6),
    )
    spec = quality_charts.quality_by_live_bytes(rows, {"snapkv": "0.5"}).to_dict()
    points = {point["policy"]: point for point in values(spec, marks(spec)[0])}
    assert (
        points["snapkv:budget=0.1"] | {"method": "snapkv", "accuracy": 0.75, "low": 0.5, "high": 1.0, "bytes": 0.3}
        == (points["snapkv:budget=0.1"])
    )
    assert points["snapkv"]["setting"] == "0.5" and points["full"]["setting"] == ""
    assert {unit["mark"]["type"] for unit in marks(spec)} == {"rule", "line", "point", "text"}
    assert marks(spec)[0]["encoding"]["color"]["field"] == "method"


def test_a_restart_stands_beside_the_same_turn_without_one() -> None:
    rows = [row("full", "agent", "ttft_ms", 100.0 * turn, turn=turn, phase="cold") for turn in (1, 2)]
    rows += [row("tiered", "agent", "ttft_ms", 9.0 + i, turn=2, phase="restart", repeat=i) for i in (0, 1)]
    spec = restart_charts.ttft_after_restart(frame(*rows)).to_dict()
    bars = {bar["who"]: bar for bar in values(spec, marks(spec)[0])}
    assert (bars["full, same process"]["value"], bars["tiered, new process"]["value"]) == (200, 9.5)
    assert (bars["tiered, new process"]["low"], bars["tiered, new process"]["high"]) == (9, 10)
    with pytest.raises(RunError, match="restart = true"):
        restart_charts.ttft_after_restart(frame(*rows[:2]))


def test_tiers_stand_over_time() -> None:
    tokens = pl.DataFrame({"policy": ["tiered"], "request": [0], "t": [0.5], "kv_bytes": [4_000_000]})
    finished = pl.DataFrame({"policy": ["tiered"], "request": [0], "t": [1.0]})
    submitted = finished.with_columns(
        pl.lit(0.0).alias("t"), pl.lit("c").alias("conversation"), pl.lit(1).alias("turn")
    )
    where: dict[str, Any] = {"turn": 1, "conversation": "c"}
    rows = frame(
        row("tiered", "agent", "kv_bytes_ram", 2e6, **where), row("tiered", "agent", "kv_bytes_ssd", 3e6, **where)
    )
    spec = tier_charts.bytes_by_tier(rows, tokens, finished, submitted).to_dict()
    points = {(p["tier"], round(p["seconds"], 3)): p["mb"] for p in values(spec, marks(spec)[0])}
    assert points["live", 0.5] == 4 and points["RAM", 1.0] == 2 and points["SSD", 1.0] == 3 and points["RAM", 0.0] == 0
    with pytest.raises(RunError, match="no bytes at rest"):
        tier_charts.bytes_by_tier(rows.filter(pl.col("metric") == "none"), tokens, finished, submitted)


def test_repeats_of_one_concurrency_are_a_point_with_a_bar() -> None:
    rows = frame(
        *(row("paged", "agent", "tokens_per_s", value, n=4, model="tiny", repeat=i) for i, value in enumerate((10, 30)))
    )
    spec = scale_charts.throughput_by_concurrency(rows).to_dict()
    (point,) = data_of(spec, spec)
    assert (point["value"], point["low"], point["high"], point["repeats"]) == (20, 10, 30, 2)
    assert [layer["mark"]["type"] for layer in spec["spec"]["layer"]] == ["line", "point", "rule"]
