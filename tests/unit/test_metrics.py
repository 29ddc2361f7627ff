"""Metrics: SQuAD's definitions by name, functions of one's own, and clear errors for what is no grade."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.errors import KvlabError, UserCodeError, WorkloadError
from kvlab.workloads import metric_names
from kvlab.workloads.metrics import contains, exact_match, f1, find_metric, find_metrics, grade_all, normalized

WORDS = st.lists(st.sampled_from(["the", "a", "Paris", "paris!", "7", "17", "is", "北京", "été", "—", ""]), max_size=6)
TEXTS = st.one_of(WORDS.map(" ".join), st.text(max_size=30))


@pytest.mark.parametrize(
    ("text", "wanted", "grades"),
    [
        ("The capital is Paris.", "paris", (1, 0, 0.5)),
        ("  An   answer! ", "the answer", (1, 1, 1)),
        ("a cat sat", "the cat", (1, 0, 2 / 3)),
        ("cat cat dog", "cat dog dog", (0, 0, 2 / 3)),
        ("It is 17.", "7", (0, 0, 0)),
        ("I do not know", "no", (0, 0, 0)),
        ("no, not so", "no", (1, 0, 0.5)),
        ("1,000 times", "1000", (1, 0, 2 / 3)),
        ("中国的首都是北京。", "北京", (1, 0, 0)),
        ("C'était l'été", "été", (0, 0, 0)),
        ("", "", (1, 1, 1)),
        ("the!", "...", (1, 1, 1)),
        ("anything", "", (0, 0, 0)),
        ("", "anything", (0, 0, 0)),
        ("x #417 y", "#417", (1, 0, 0.5)),
    ],
)
def test_text_metrics_on_cases_computed_by_hand(text: str, wanted: str, grades: tuple[float, float, float]) -> None:
    assert (contains(text, wanted), exact_match(text, wanted), f1(text, wanted)) == pytest.approx(grades)


@given(TEXTS, TEXTS)
def test_text_metrics_agree_with_each_other_on_any_text(text: str, wanted: str) -> None:
    assert contains(text, text) == exact_match(text, text) == f1(text, text) == 1
    assert exact_match(text, wanted) <= contains(text, wanted)
    assert exact_match(text, wanted) <= f1(text, wanted) <= 1
    assert f1(text, wanted) == f1(wanted, text)
    if contains(text, wanted):
        assert normalized(wanted) in normalized(text)


@given(TEXTS, TEXTS)
def test_f1_is_that_of_precision_and_recall(text: str, wanted: str) -> None:
    said, right = Counter(normalized(text).split()), Counter(normalized(wanted).split())
    shared = (said & right).total()
    if shared:
        precision, recall = shared / said.total(), shared / right.total()
        assert f1(text, wanted) == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("name", metric_names())
def test_the_best_of_several_right_answers_counts(name: str) -> None:
    metric = find_metric(name)
    assert metric.grades("It is 4.", ["four", 4, "it is 4"]) == {name: 1.0}
    assert metric.grades("It is 4.", 4.5)[name] == 0
    assert metric.grades("True", True) == {name: 1.0}


def test_a_function_grades_under_its_name_and_the_first_grade_is_the_main_one() -> None:
    def closeness(text: str, wanted: Any) -> float:
        return 1 / (1 + abs(float(text) - wanted))

    def parts(text: str, wanted: Any) -> dict[str, float]:
        return {"long": len(text) > 1, "short": np.float32(0.5)}

    metrics = find_metrics([closeness, parts, "f1"])
    assert grade_all(metrics, "5", 5) == {"accuracy": 1.0, "closeness": 1.0, "long": 0.0, "short": 0.5, "f1": 1.0}
    assert grade_all(find_metrics([parts, closeness]), "5", 6)["accuracy"] == 0
    assert grade_all(find_metrics(lambda text, wanted: text == wanted), "x", "x") == {"accuracy": 1.0, "own": 1.0}
    assert grade_all(find_metrics(lambda *_: {"accuracy": 1, "style": 0}), "x", "y") == {"accuracy": 1.0, "style": 0.0}
    assert grade_all(find_metrics(lambda *_: {}), "x", "y") == {}


@pytest.mark.parametrize("number", [0, 1, True, 0.25, Fraction(1, 4), np.float32(0.25), np.bool_(True), mx.array(0.25)])
def test_a_number_of_any_library_is_a_grade(number: Any) -> None:
    assert 0 <= find_metric(lambda *_: number).grades("", "")["own"] <= 1


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, 2, -0.1, "1", None, [1.0], np.array([0.1, 0.2]), 1j, {"x": math.nan}, {"x": "no"}, {"x": 3}]
    + [{1: 0.5}, {"": 0.5}, {"two words": 0.5}, {"a{}": 0.5}, {None: 1}],
)
def test_what_is_no_grade_is_refused_with_the_answer_it_was_given_for(value: Any) -> None:
    """Whatever a function returns that is no number from 0 to 1: the class of NaN, other numbers, texts and names."""
    with pytest.raises(UserCodeError) as error:
        find_metric(lambda *_: value).grades("an {answer}", "the wanted")
    told = str(error.value)
    assert told.startswith("metric 'own' returned ") and "'an {answer}', wanted 'the wanted'" in told
    assert "from 0 to 1" in told or "a grade's name is text" in told


@pytest.mark.parametrize("name", metric_names())
def test_what_holds_no_texts_is_refused(name: str) -> None:
    with pytest.raises(UserCodeError, match="compares texts, not dict"):
        find_metric(name).grades("x", {"least": 3})


def fails(text: str, wanted: str) -> float:
    return float(text)


def test_a_metric_that_raises_is_told_with_its_line_and_the_answer() -> None:
    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(UserCodeError) as error:
        find_metric(fails).grades("I do not know", "4")
    assert (
        f"metric 'fails' raised ValueError: could not convert string to float: 'I do not know' at {__file__}:{line}"
        in (str(error.value))
    )
    with pytest.raises(UserCodeError, match="takes 1 positional argument but 2 were given for the answer ''"):
        find_metric(lambda text: 1).grades("", "4")


@pytest.mark.parametrize(
    ("given_metrics", "told"),
    [
        ("exact", "unknown metric 'exact': did you mean 'exact_match'? known are contains, exact_match, f1"),
        ("", "unknown metric ''"),
        (3, "metric 3 is neither a name nor a function"),
        ([3], "metric 3 is neither"),
        (None, "metric None is neither"),
        ({"f1": f1}, "is neither a name nor a function"),
        (Fraction, "is neither a name nor a function"),
        (["f1", "f1"], "two metrics are named 'f1'"),
        ([lambda *_: 1, lambda *_: 0], "two metrics are named 'own'"),
    ],
)
def test_what_is_no_metric_is_refused(given_metrics: Any, told: str) -> None:
    with pytest.raises(WorkloadError) as error:
        find_metrics(given_metrics)
    assert told in str(error.value)


def test_two_metrics_that_give_one_grade_are_refused() -> None:
    with pytest.raises(KvlabError, match="gives 'f1', which a metric before it gives too"):
        grade_all(find_metrics(["f1", lambda *_: {"f1": 1}]), "x", "x")
