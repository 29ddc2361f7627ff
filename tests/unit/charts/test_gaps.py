"""Gaps between tokens: a curve a policy, and bars beside a long prompt."""

from __future__ import annotations

import polars as pl
import pytest

from kvlab import charts
from kvlab.errors import RunError


def test_gaps_are_between_tokens_of_one_request() -> None:
    columns = ["policy", "request", "t"]
    first = pl.DataFrame([("full", 0, 0.0), ("full", 1, 0.005)], schema=columns, orient="row")
    later = pl.DataFrame([("full", 0, 0.010), ("full", 0, 0.030), ("full", 1, 0.015)], schema=columns, orient="row")
    spec = charts.token_gaps(first, later).to_dict()
    curve = next(iter(spec["datasets"].values()))
    assert curve[0]["gap"] == pytest.approx(10) and curve[-1]["gap"] == pytest.approx(20)
    with pytest.raises(RunError, match="no gaps"):
        charts.token_gaps(first, later.head(0))


def test_gaps_chart_compares_quiet_and_prefill() -> None:
    rows = pl.DataFrame(
        [
            {"model": "tiny", "metric": "itl_p50_ms", "value": 2.0, "phase": "quiet"},
            {"model": "tiny", "metric": "itl_p99_ms", "value": 7.0, "phase": "prefill"},
        ]
    )
    spec = charts.gaps_beside_a_long_prompt(rows).to_dict()
    [data] = spec["datasets"].values()
    assert {row["phase"]: row["value"] for row in data} == {"quiet": 2.0, "prefill": 7.0}


def test_gaps_beside_a_prompt_need_their_rows() -> None:
    rows = pl.DataFrame({"model": ["tiny"], "metric": ["ttft_ms"], "phase": ["quiet"], "value": [1.0]})
    with pytest.raises(RunError, match="bench pace"):
        charts.gaps_beside_a_long_prompt(rows)
    with pytest.raises(RunError, match="no column 'model'"):
        charts.gaps_beside_a_long_prompt(rows.drop("model"))
