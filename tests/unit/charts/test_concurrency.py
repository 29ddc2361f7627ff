"""Charts of concurrency: what stands on their axes, and what they say without rows."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab import charts
from kvlab.errors import RunError
from kvlab.results import row
from tests.chart_kit import data_of, frame

ROWS = pl.DataFrame(
    [
        {"policy": policy, "workload": "shared", "n": n, "model": "tiny", "metric": metric, "value": float(n * k)}
        for policy, k in (("paged", 3), ("mlx-lm", 1))
        for n in (1, 8, 64)
        for metric in ("tokens_per_s", "kv_bytes_live")
    ]
)


@pytest.mark.parametrize(
    ("chart", "unit"), [(charts.throughput_by_concurrency, 1.0), (charts.live_bytes_by_concurrency, 1e-6)]
)
def test_concurrency_charts_show_every_row_on_a_log_axis(chart: Any, unit: float) -> None:
    spec = chart(ROWS).to_dict()
    encoding = spec["spec"]["layer"][0]["encoding"]
    assert encoding["x"]["field"] == "n"
    assert encoding["x"]["scale"]["type"] == "log"
    [data] = spec["datasets"].values()
    assert len(data) == 6
    assert max(row["value"] for row in data) == pytest.approx(192 * unit)


def test_repeats_of_one_concurrency_are_a_point_with_a_bar() -> None:
    rows = frame(
        *(row("paged", "agent", "tokens_per_s", value, n=4, model="tiny", repeat=i) for i, value in enumerate((10, 30)))
    )
    spec = charts.throughput_by_concurrency(rows).to_dict()
    (point,) = data_of(spec, spec)
    assert (point["value"], point["low"], point["high"], point["repeats"]) == (20, 10, 30, 2)
    assert [layer["mark"]["type"] for layer in spec["spec"]["layer"]] == ["line", "point", "rule"]


def test_without_their_rows_they_say_which_command_makes_them() -> None:
    with pytest.raises(RunError, match="bench decode"):
        charts.throughput_by_concurrency(ROWS.filter(pl.col("metric") == "nothing"))
    with pytest.raises(RunError, match="no column"):
        charts.live_bytes_by_concurrency(ROWS.drop("model"))
