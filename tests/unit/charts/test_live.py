"""Live KV over time: a sum over requests, thinned to what can be seen."""

from __future__ import annotations

import polars as pl
import pytest

from kvlab import charts
from kvlab.charts.live import MAX_POINTS
from tests.chart_kit import data_of, marks, tokens


def test_live_kv_adds_up_and_falls_when_a_request_ends() -> None:
    columns = ["policy", "request", "t"]
    finished = pl.DataFrame([("full", 0, 1.3), ("full", 1, 1.4), ("paged", 0, 9.6)], schema=columns, orient="row")
    submitted = pl.DataFrame([("full", 0, 0.9), ("full", 1, 1.15), ("paged", 0, 8.9)], schema=columns, orient="row")
    spec = charts.kv_bytes_over_time(tokens(), finished, submitted).to_dict()
    (line,) = marks(spec)
    points = [p for p in data_of(spec, line) if p["policy"] == "full"]
    assert [(round(p["seconds"], 3), round(p["kv_bytes"] * 1e6)) for p in points] == [
        (0, 0), (0.1, 100), (0.2, 110), (0.25, 110), (0.3, 160), (0.4, 160), (0.4, 50), (0.5, 50), (0.5, 0),
    ]  # fmt: skip
    assert max(p["seconds"] for p in data_of(spec, line)) == pytest.approx(0.7, abs=1e-5)


def test_live_kv_of_requests_that_start_together_rises_as_a_sum() -> None:
    columns = ["policy", "request", "t", "kv_bytes"]
    both = pl.DataFrame([("full", 0, 2.0, 100), ("full", 1, 4.0, 100)], schema=columns, orient="row")
    submitted = pl.DataFrame([("full", 0, 0.0), ("full", 1, 0.0)], schema=columns[:3], orient="row")
    spec = charts.kv_bytes_over_time(both, submitted=submitted).to_dict()
    points = data_of(spec, marks(spec)[0])
    assert [(p["seconds"], round(p["kv_bytes"] * 1e6)) for p in points] == [(0, 0), (2, 150), (4, 200)]


def test_live_kv_is_thinned() -> None:
    many = pl.DataFrame({"policy": ["full"] * 5000, "request": [0] * 5000, "t": range(5000), "kv_bytes": range(5000)})
    spec = charts.kv_bytes_over_time(many).to_dict()
    assert 400 <= len(data_of(spec, marks(spec)[0])) <= MAX_POINTS


def test_many_policies_fit_one_picture() -> None:
    many = [(f"p{i}", 0, float(t), t) for i in range(12) for t in range(1000)]
    frame = pl.DataFrame(many, schema=["policy", "request", "t", "kv_bytes"], orient="row")
    assert charts.kv_bytes_over_time(frame).to_dict()
