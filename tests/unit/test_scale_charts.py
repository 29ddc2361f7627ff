"""Charts of concurrency: what stands on their axes, and what they say without rows."""

import polars as pl
import pytest

from kvlab.charts import concurrency as scale_charts
from kvlab.errors import RunError

ROWS = pl.DataFrame(
    [
        {"policy": policy, "workload": "shared", "n": n, "model": "tiny", "metric": metric, "value": float(n * k)}
        for policy, k in (("paged", 3), ("mlx-lm", 1))
        for n in (1, 8, 64)
        for metric in ("tokens_per_s", "kv_bytes_live")
    ]
)


@pytest.mark.parametrize(
    ("chart", "unit"), [(scale_charts.throughput_by_concurrency, 1.0), (scale_charts.live_bytes_by_concurrency, 1e-6)]
)
def test_concurrency_charts_show_every_row_on_a_log_axis(chart, unit):
    spec = chart(ROWS).to_dict()
    encoding = spec["spec"]["layer"][0]["encoding"]
    assert encoding["x"]["field"] == "n"
    assert encoding["x"]["scale"]["type"] == "log"
    [data] = spec["datasets"].values()
    assert len(data) == 6
    assert max(row["value"] for row in data) == pytest.approx(192 * unit)


def test_gaps_chart_compares_quiet_and_prefill():
    rows = pl.DataFrame(
        [
            {"model": "tiny", "metric": "itl_p50_ms", "value": 2.0, "phase": "quiet"},
            {"model": "tiny", "metric": "itl_p99_ms", "value": 7.0, "phase": "prefill"},
        ]
    )
    spec = scale_charts.gaps_beside_a_long_prompt(rows).to_dict()
    [data] = spec["datasets"].values()
    assert {row["phase"]: row["value"] for row in data} == {"quiet": 2.0, "prefill": 7.0}


def test_charts_without_their_rows_say_which_command_makes_them():
    with pytest.raises(RunError, match="bench decode"):
        scale_charts.throughput_by_concurrency(ROWS.filter(pl.col("metric") == "nothing"))
    with pytest.raises(RunError, match="no column"):
        scale_charts.gaps_beside_a_long_prompt(ROWS.drop("model"))
