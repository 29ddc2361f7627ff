"""Summaries of teacher-forced workloads: means with intervals by bootstrap over items."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from kvlab.errors import RunError
from kvlab.results import Results, row
from kvlab.results.forced_summary import is_forced, summarize_forced
from kvlab.results.intervals import bootstrap
from kvlab.results.rows import TOGETHER


def test_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    names = [f"i{i}" for i in range(60)]
    found = [bootstrap(rng.normal(3.0, 1.0, 60).tolist(), names) for _ in range(200)]
    assert 0.88 <= np.mean([one.low <= 3.0 <= one.high for one in found]) <= 0.99
    assert all(one.low <= one.mean <= one.high and one.items == 60 for one in found)


def test_values_of_one_item_are_drawn_together() -> None:
    """The same values in 5 items instead of 100 say less, where those of an item are alike."""
    values = [float(i // 20) for i in range(100)]
    apart, alike = (bootstrap(values, [str(i // size) for i in range(100)]) for size in (1, 20))
    assert apart.mean == alike.mean
    assert alike.high - alike.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize(("value", "low", "high"), [(0.0, 0.0, 0.1), (1.0, 0.9, 1.0)])
def test_shares_that_are_all_equal_keep_a_bound(value: float, low: float, high: float) -> None:
    one = bootstrap([value] * 30, [str(i) for i in range(30)], share=True)
    assert (one.mean, one.low, one.high) == pytest.approx((value, low, high))


def rows(**flips: list[float]) -> pl.DataFrame:
    made = []
    for policy, values in {"full": [0.0, 0.0, 0.0], **flips}.items():
        for i, value in enumerate(values):
            place = {"conversation": f"c{i}", "turn": 1}
            made.append(row(policy, "tools:x", "tool_flip", value, kind="name", **place))
            made.append(row(policy, "tools:x", "kl", value / 10, kind="prose", **place))
            made.append(row(policy, "tools:x", "equal_call", float(value == 0), kind="call", **place))
    return Results(made, {}).frame()


def test_summary_has_each_measure_with_its_interval() -> None:
    summary = summarize_forced(rows(mine=[0.0, 0.5, 1.0]))
    assert summary["policy"].unique(maintain_order=True).to_list() == ["full", "mine"]
    mine = {r["measure"]: r for r in summary.filter(policy="mine").iter_rows(named=True)}
    assert list(mine) == ["prose KL", "name flips", "equal calls"]
    assert mine["name flips"]["value"] == 0.5 and mine["name flips"]["items"] == 3
    assert 0 <= mine["name flips"]["low"] < 0.5 < mine["name flips"]["high"] <= 1
    assert mine["equal calls"]["value"] == pytest.approx(1 / 3)
    full = summary.filter(policy="full", measure="name flips").row(0, named=True)
    assert (full["low"], full["high"]) == (0.0, 0.0)  # by definition, not by measurement


def test_tables_name_policies_values_and_intervals() -> None:
    results = Results(rows(mine=[0.0, 0.5, 1.0]).to_dicts(), {})
    text, html = repr(results), results._repr_html_()
    assert text.splitlines()[0].split("  ")[0] == "policy"
    assert "50.0% [" in text and "mine" in text and "prose KL" in text
    table = html[html.index("<table") : html.index("</table>")]
    assert "50.0% [" in table and table.count("mine") == 1


def test_perplexity_is_a_geometric_mean_and_rows_of_all_items_do_not_count() -> None:
    made = [
        row("full", "kl:x", metric, value, kind="text", conversation=f"t{i}", turn=1)
        for i, base in enumerate((2.0, 8.0))
        for metric, value in (("perplexity", base), ("top1", 1.0), ("kl", 0.0))
    ]
    made.append(row("full", "kl:x", "perplexity", 100.0, kind=TOGETHER, position=1))
    summary = summarize_forced(Results(made, {}).frame())
    assert summary.filter(measure="perplexity")["value"].item() == pytest.approx(4.0)


def test_rows_of_other_workloads_have_no_such_summary() -> None:
    frame = Results([row("full", "agent", "ttft_ms", 3.0, turn=1)], {}).frame()
    assert not is_forced(frame)
    with pytest.raises(RunError, match="tools:PATH or kl:FILE"):
        summarize_forced(frame)
