"""KV by tier: bytes over time and after each request, and the tier of every block."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab import charts
from kvlab.errors import RunError
from kvlab.results import row
from tests.chart_kit import frame, marks, values


def test_bytes_of_every_tier_are_drawn_over_time() -> None:
    tokens = pl.DataFrame({"policy": ["tiered"], "request": [0], "t": [0.5], "kv_bytes": [4_000_000]})
    finished = pl.DataFrame({"policy": ["tiered"], "request": [0], "t": [1.0]})
    submitted = finished.with_columns(
        pl.lit(0.0).alias("t"), pl.lit("c").alias("conversation"), pl.lit(1).alias("turn")
    )
    where: dict[str, Any] = {"turn": 1, "conversation": "c"}
    rows = frame(
        row("tiered", "agent", "kv_bytes_ram", 2e6, **where), row("tiered", "agent", "kv_bytes_ssd", 3e6, **where)
    )
    spec = charts.bytes_by_tier(rows, tokens, finished, submitted).to_dict()
    points = {(p["tier"], round(p["seconds"], 3)): p["mb"] for p in values(spec, marks(spec)[0])}
    assert points["live", 0.5] == 4 and points["RAM", 1.0] == 2 and points["SSD", 1.0] == 3 and points["RAM", 0.0] == 0
    with pytest.raises(RunError, match="no bytes at rest"):
        charts.bytes_by_tier(rows.filter(pl.col("metric") == "none"), tokens, finished, submitted)


def test_tier_that_this_process_has_not_declared_is_drawn_too() -> None:
    times = pl.DataFrame({"policy": ["far"], "request": [0], "t": [1.0]})
    submitted = times.with_columns(pl.lit(0.0).alias("t"), pl.lit("c").alias("conversation"), pl.lit(1).alias("turn"))
    bytes_ = {"kv_bytes_moon": 7e6, "kv_bytes_ram": 2e6, "kv_bytes_live": 1e6}
    rows = frame(*(row("far", "w", "accuracy", value, turn=1, conversation="c") for value in bytes_.values()))
    rows = rows.with_columns(pl.Series("metric", list(bytes_)))
    spec = charts.bytes_by_tier(rows, times.with_columns(kv_bytes=pl.lit(5, pl.Int64)), times, submitted).to_dict()
    assert {point["tier"] for point in values(spec, marks(spec)[0])} == {"live", "RAM", "moon"}
    places = blocks().with_columns(pl.col("tier").replace("ssd", "moon"))
    assert charts.block_map(places).to_dict()["encoding"]["color"]["scale"]["domain"] == ["ram", "ssd", "moon", "gone"]


def blocks() -> pl.DataFrame:
    tiers = {1: {"a": "rrr"}, 2: {"a": "ssg", "b": "rr"}}
    names = {"r": "ram", "s": "ssd", "g": "gone"}
    found = [
        (step, name, i, names[tier])
        for step, rows in tiers.items()
        for name, row in rows.items()
        for i, tier in enumerate(row)
    ]
    return pl.DataFrame(found, schema=["step", "conversation", "block", "tier"], orient="row")


def test_neighbouring_blocks_of_one_tier_are_drawn_as_one_piece() -> None:
    spec = charts.block_map(blocks()).to_dict()
    pieces = [(p["conversation"], p["tier"], p["start"], p["stop"]) for p in next(iter(spec["datasets"].values()))]
    assert pieces == [("a", "ssd", 0, 2), ("a", "gone", 2, 3), ("b", "ram", 0, 2)]
    first = charts.block_map(blocks(), step=1).to_dict()
    assert [p["tier"] for p in next(iter(first["datasets"].values()))] == ["ram"]
    assert first["encoding"]["y"]["scale"]["domain"] == ["a", "b"]
    with pytest.raises(RunError, match="no request 7; there are 1 to 2"):
        charts.block_map(blocks(), step=7)


def test_bytes_at_rest_are_drawn_with_a_mark_at_the_step() -> None:
    steps = pl.DataFrame({"step": [1, 2], "ram": [2_000_000, 1_000_000], "ssd": [0, 3_000_000]})
    spec = charts.bytes_at_rest(steps, step=2).to_dict()
    line, rule = spec["layer"]
    assert {(p["tier"], p["step"]): p["bytes"] for p in spec["datasets"][line["data"]["name"]]} == {
        ("ram", 1): 2, ("ram", 2): 1, ("ssd", 1): 0, ("ssd", 2): 3,
    }  # fmt: skip
    assert spec["datasets"][rule["data"]["name"]] == [{"step": 2}]
