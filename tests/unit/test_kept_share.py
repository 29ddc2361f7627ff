"""Right answers by the share of KV that is left: the numbers of the summary, and the marks of its chart."""

from __future__ import annotations

import polars as pl
import pytest

from kvlab import charts
from kvlab.charts.method_channels import method_channels
from kvlab.charts.policy_styles import policy_styles
from kvlab.errors import RunError
from kvlab.figures.parts import method_and_budget
from kvlab.results import row
from kvlab.results.kept_share import accuracy_by_kept_share
from tests.chart_kit import frame, marks

KNOWN, UNKNOWN = "needle:single", "needle:single,question=none"
POLICIES = {"full": (100, 4), "snapkv:budget=0.5": (50, 3), "snapkv:budget=0.25": (25, 1), "random:budget=0.5": (50, 0)}


def rows() -> pl.DataFrame:
    made = []
    for workload in (KNOWN, UNKNOWN):
        for policy, (live, right) in POLICIES.items():
            for item in range(4):
                about = {"turn": 1, "conversation": str(item % 2), "seed": item // 2}
                made.append(row(policy, workload, "kv_bytes_live", live, **about))
                made.append(row(policy, workload, "accuracy", float(item < right), **about))
    return frame(*made)


def test_summary_has_the_share_of_live_kv_and_the_interval_of_the_mean() -> None:
    found = accuracy_by_kept_share(rows())
    assert found["workload"].unique(maintain_order=True).to_list() == [KNOWN, UNKNOWN]
    known = {one["policy"]: one for one in found.filter(pl.col("workload") == KNOWN).to_dicts()}
    assert list(known) == list(POLICIES)
    assert [one["kept"] for one in known.values()] == [1.0, 0.5, 0.25, 0.5]
    assert [one["accuracy"] for one in known.values()] == [1.0, 0.75, 0.25, 0.0]
    assert all(one["items"] == 4 for one in known.values()), "conversations of two seeds are two"
    assert all(one["low"] <= one["accuracy"] <= one["high"] for one in known.values())
    assert known["full"]["low"] == 0.25 and known["random:budget=0.5"]["high"] == 0.75, "rule of three"


def test_summary_without_full_or_without_answers_is_refused() -> None:
    with pytest.raises(RunError, match="no live KV of full"):
        accuracy_by_kept_share(rows().filter(pl.col("policy") != "full"))
    with pytest.raises(RunError, match="no known answers"):
        accuracy_by_kept_share(rows().filter(pl.col("metric") != "accuracy"))


def test_chart_has_a_panel_a_workload_and_a_line_a_method_with_intervals() -> None:
    spec = charts.accuracy_by_kept_kv(accuracy_by_kept_share(rows()), {UNKNOWN: "question unknown"}).to_dict()
    assert [panel["title"]["text"] for panel in spec["hconcat"]] == [KNOWN, "question unknown"]
    for panel in spec["hconcat"]:
        rule, line, point = marks(panel)
        assert (rule["encoding"]["y"]["field"], rule["encoding"]["y2"]["field"]) == ("low", "high")
        assert line["encoding"]["color"]["scale"]["domain"] == ["full", "snapkv", "random"]
        assert len(set(line["encoding"]["color"]["scale"]["range"])) == 3
        assert point["encoding"]["x"]["field"] == "kept"


def test_methods_of_one_colour_have_dashes_and_shapes_of_their_own() -> None:
    known = ["full", "paged", "tiered", "snapkv", "knorm", "random", "rotating", "quantized"]
    methods = [*known, *(f"new{i}" for i in range(9))]
    channels = method_channels(pl.DataFrame({"policy": methods, "method": methods}), policy_styles(methods))
    look = {name: [str(one) for one in channel.to_dict()["scale"]["range"]] for name, channel in channels.items()}
    for name in ("strokeDash", "shape"):
        assert len(set(zip(look["color"], look[name], strict=True))) == len(methods)


def test_chart_can_be_drawn_and_refuses_an_empty_summary() -> None:
    import vl_convert

    chart = charts.accuracy_by_kept_kv(accuracy_by_kept_share(rows()))
    assert vl_convert.vegalite_to_svg(chart.to_dict()).count("<path") > 8
    with pytest.raises(RunError, match="empty"):
        charts.accuracy_by_kept_kv(accuracy_by_kept_share(rows()).head(0))


def test_ranking_has_a_panel_a_workload_and_the_best_method_on_top() -> None:
    made = [
        (workload, method, budget, share, share / 2, share)
        for workload in (KNOWN, UNKNOWN)
        for method, shares in (("random", (0.0, 0.1)), ("local(keydiff)", (0.5, 0.9)), ("knorm", (0.3, 0.2)))
        for budget, share in zip((0.25, 0.5), shares, strict=True)
    ]
    columns = ["workload", "method", "budget", "accuracy", "low", "high"]
    summary = pl.DataFrame(made, schema=columns, orient="row")
    spec = charts.accuracy_by_method(summary, {UNKNOWN: "question unknown"}).to_dict()
    assert [panel["title"]["text"] for panel in spec["hconcat"]] == [KNOWN, "question unknown"]
    for panel in spec["hconcat"]:
        rule, point = panel["layer"]
        assert point["encoding"]["y"]["sort"] == ["local(keydiff)", "knorm", "random"]
        assert (rule["encoding"]["x"]["field"], rule["encoding"]["x2"]["field"]) == ("low", "high")
        assert point["encoding"]["shape"]["scale"]["domain"] == ["keeps 25% of the prompt", "keeps 50% of the prompt"]
    with pytest.raises(RunError, match="nothing to draw"):
        charts.accuracy_by_method(summary.head(0))
    three = pl.concat([summary, summary.head(1).with_columns(pl.lit(0.75).alias("budget"))])
    with pytest.raises(RunError, match="the rows have 3: filter them"):
        charts.accuracy_by_method(three)


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ("local", ("local(keydiff)", 0.5)),
        ("local(knorm):budget=0.25", ("local(knorm)", 0.25)),
        ("pyramidkv:window=8,budget=0.25", ("pyramidkv", 0.25)),
        ("knorm:budget=64", ("knorm", 64.0)),
        ("full", None),
        ("rotating", None),
    ],
)
def test_a_policy_that_evicts_by_scores_has_a_method_and_a_budget(policy: str, found: tuple[str, float] | None) -> None:
    assert method_and_budget(policy) == found
