"""Accuracy is void where `full` itself fails a task.

Class of inputs: every set of graded rows, with `full` good, bad or absent, for one kind of question or several, at one
point of a sweep or several.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab import charts
from kvlab.errors import RunError
from kvlab.experiments import compare, run
from kvlab.experiments.config import read_experiment
from kvlab.experiments.sweep import sweep
from kvlab.experiments.sweep_report import table
from kvlab.models import LoadedModel
from kvlab.results import Results, Row, mark_void, row
from kvlab.results.report import figures, report_html
from kvlab.results.summary import text_table
from kvlab.results.void import MIN_REFERENCE_ACCURACY, valid, void_note
from kvlab.workloads import Workload, WorkloadRequest
from kvlab.workloads.base import assistant, cut_turns, user


def graded(policy: str, *grades: float, **where: Any) -> list[Row]:
    place = {"kind": "call", "model": "tiny", "n": 1, **where}
    rows = [row(policy, "agent", "accuracy", grade, turn=1, **place) for grade in grades]
    return rows + [row(policy, "agent", metric, 5.0, turn=1, **place) for metric in ("ttft_ms", "kv_bytes_live")]


@given(full=st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1), other=st.sampled_from([0.0, 1.0]))
def test_accuracy_is_void_exactly_where_full_has_fewer_than_half_right(full: list[float], other: float) -> None:
    rows = mark_void([*graded("full", *full), *graded("knorm", *[other] * len(full))])
    fails = sum(full) / len(full) < MIN_REFERENCE_ACCURACY
    assert {"void" in one for one in rows if one["metric"] == "accuracy"} == {fails}
    assert not any("void" in one for one in rows if one["metric"] == "ttft_ms")
    assert [one["value"] for one in rows if one["metric"] == "accuracy"] == [*full, *[other] * len(full)]


def test_each_kind_of_question_is_judged_by_itself() -> None:
    rows = mark_void(
        [
            *graded("full", 0, 0, 0), *graded("full", 1, 1, 0, kind="recall"),
            *graded("knorm", 0, 0, 0), *graded("knorm", 1, 0, 0, kind="recall"),
        ]
    )  # fmt: skip
    summary = Results(rows, {}).summary()
    assert summary["accuracy"].to_list() == [pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert summary["void"].unique().to_list() == [
        "Accuracy is void where full itself has fewer than half right: agent call (full has 0.00)."
    ]


def test_each_point_of_a_sweep_is_judged_by_itself() -> None:
    rows = []
    for tokens, grade in ((1000, 1.0), (8000, 0.0)):
        for policy in ("full", "knorm"):
            rows += [{**one, "tokens": tokens} for one in graded(policy, grade)]
    marked = mark_void(rows)
    assert {one["tokens"] for one in marked if "void" in one} == {8000}
    assert set(valid(Results(marked, {}).frame()).filter(metric="accuracy")["tokens"]) == {1000}


def test_nothing_is_void_without_full() -> None:
    rows = [*graded("knorm", 0, 0), *graded("random", 0, 0)]
    assert mark_void(rows) == rows and void_note(Results(rows, {}).frame()) == ""


def test_table_page_and_report_say_void_and_show_no_zeros() -> None:
    results = Results(mark_void([*graded("full", 0, 0), *graded("knorm", 0, 0)]), {"model": "tiny"})
    text, page = text_table(results.summary()), report_html(results, title="T", lead="L")
    for shown in (text, results._repr_html_(), page):
        assert "Accuracy is void" in shown and "0.00" in shown and "full itself" in shown
    assert "accuracy  " not in text.splitlines()[0] and not text.splitlines()[0].endswith("accuracy")
    assert not [figure for figure in figures(results) if "answer" in figure.see]
    for chart in (charts.accuracy_by_policy, charts.quality_by_bytes):
        with pytest.raises(RunError, match="void"):
            chart(results.frame())


def test_marks_are_kept_in_the_folder_of_a_run(tmp_path: Any) -> None:
    rows = mark_void([*graded("full", 0), *graded("knorm", 0)])
    Results(rows, {}).save(tmp_path)
    assert Results.load(tmp_path).rows == rows


class Impossible(Workload):
    """A question that no model answers: its wanted value is drawn, and never told."""

    def __init__(self) -> None:
        self.name = "impossible"  # of the instance: the class is not to be known to other tests

    def requests(self) -> list[WorkloadRequest]:
        return cut_turns("one", [user("Which number do I think of?"), assistant("#731")], {1: "recall"}, max_tokens=2)


@pytest.mark.parametrize("policies", [["full", "knorm"], ["knorm"]])
def test_comparison_marks_what_full_fails_though_full_is_not_compared(policies: list[str], llama: LoadedModel) -> None:
    results = compare(policies, Impossible(), llama, progress=False)
    graded = [one for one in results.rows if one["metric"] == "accuracy"]
    assert len(graded) == len(policies) and all(one["void"] == "full has 0.00" for one in graded)
    assert "void" in repr(results)


def test_run_of_full_alone_says_that_it_fails(llama: LoadedModel) -> None:
    assert "Accuracy is void" in repr(run("full", Impossible(), llama, progress=False))
    assert "void" not in repr(run("knorm", Impossible(), llama, progress=False))


@pytest.fixture
def named() -> Iterator[str]:
    """The name that an experiment file knows the impossible question by."""

    class Named(Impossible):
        name = "impossible-of-test"

        def __init__(self, n: int = 1) -> None:
            self.n = n

    yield Named.name
    del Named
    gc.collect()  # a class that is gone is no longer known


def test_sweep_says_void_in_its_rows_and_its_table(named: str, llama: LoadedModel, tmp_path: Any) -> None:
    file = tmp_path / "some.toml"
    file.write_text(f'policies = ["full", "knorm"]\nworkload = "{named}"\nmodel = "{llama.path}"\nexact = false\n')
    experiment = read_experiment(file)
    results = sweep(experiment, tmp_path / "rows", progress=False)
    assert [one["void"] for one in results.rows if one["metric"] == "accuracy"] == ["full has 0.00"] * 2
    assert "Accuracy is void" in table(experiment, results)
    assert [one.get("void") for one in Results.load(tmp_path / "rows").rows] == [
        one.get("void") for one in results.rows
    ]
