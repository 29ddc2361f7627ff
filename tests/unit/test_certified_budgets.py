"""Certified budgets: bounds that hold for few items, families tested in order, and promises kept on other items."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.errors import PolicyError, RunError
from kvlab.policies import Policy, with_budgets
from kvlab.results.certified import CertifyRequest, certify, coverage
from kvlab.results.certified.losses import family
from kvlab.results.certified.risk_bounds import (
    binomial_tail,
    expected_bound,
    least_items,
    p_value,
    upper_bound,
)
from kvlab.results.rows import SCHEMA, grade_row, row

BUDGETS = (0.75, 0.5, 0.25)


def frame(losses: dict[str, np.ndarray], metric: str = "equal_call", kinds: tuple[str, ...] = ()) -> pl.DataFrame:
    """Return rows of ``full`` and of policies with these losses, ``[items]``; live KV by the order of the policies."""
    items = len(next(iter(losses.values())))
    rows: list[dict[str, Any]] = []
    for place, (policy, lost) in enumerate({"full": np.zeros(items), **losses}.items()):
        for item, loss in enumerate(lost):
            where: dict[str, Any] = {"conversation": str(item), "turn": 1, "seed": 0}
            rows.append(row(policy, "tools", "kv_bytes_live", 1000 - 100 * place, **where))
            value = loss if metric in ("tool_flip", "kl") else 1 - loss
            rows += [row(policy, "tools", metric, value, kind=kind, **where) for kind in kinds or (None,)]
    return pl.DataFrame(rows, schema=dict(SCHEMA))


def losses(items: int, **lost: int) -> dict[str, np.ndarray]:
    return {name.replace("_", ":budget=0."): (np.arange(items) < count) * 1.0 for name, count in lost.items()}


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 99))
def test_binomial_tail_equals_the_sum_of_exact_fractions(items: int, most: int, percent: int) -> None:
    rate = Fraction(percent, 100)
    exact = sum(math.comb(items, k) * rate**k * (1 - rate) ** (items - k) for k in range(min(most, items) + 1))
    assert binomial_tail(items, most, percent / 100) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(("items", "lost", "bound"), [(299, 0, 0.00997), (100, 0, 0.02951), (100, 5, 0.10225)])
def test_the_bound_of_losses_of_0_and_1_is_that_of_clopper_and_pearson(items: int, lost: int, bound: float) -> None:
    values = (np.arange(items) < lost) * 1.0
    assert upper_bound(values, 0.05) == pytest.approx(bound, abs=2e-5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80), st.floats(0.01, 0.99))
def test_p_values_are_probabilities_that_fall_as_the_bound_rises(values: list[float], bound: float) -> None:
    lost = np.array(values)
    lower, upper = p_value(lost, bound * 0.9, 0.1), p_value(lost, bound, 0.1)
    assert 0.0 <= upper <= lower <= 1.0
    assert p_value(lost, upper_bound(lost, 0.1), 0.1) <= 0.1 + 1e-6


def test_a_real_loss_is_rejected_no_more_often_than_the_level_says() -> None:
    drawn = np.random.default_rng(0)
    at_bound = [
        p_value(drawn.beta(0.2, 1.8, 80), 0.1, 0.1) <= 0.1 for _ in range(400)
    ]  # their mean is the bound itself
    assert np.mean(at_bound) <= 0.1


@pytest.mark.parametrize(("bound", "confidence", "items"), [(0.01, 0.95, 299), (0.05, 0.95, 59), (0.05, None, 19)])
def test_fewer_items_than_the_least_cannot_hold_and_these_can(
    bound: float, confidence: float | None, items: int
) -> None:
    assert least_items(bound, confidence) == items
    enough = certify(frame({"knorm": np.zeros(items)}), "equal_call", at_most=bound, confidence=confidence)
    assert [one.holds for one in enough.policies] == [True]
    with pytest.raises(RunError, match=f"measure {items} or more"):
        certify(frame({"knorm": np.zeros(items - 1)}), "equal_call", at_most=bound, confidence=confidence)


def test_a_policy_holds_only_where_every_larger_budget_of_its_family_does() -> None:
    found = certify(frame(losses(100, knorm_75=0, knorm_5=30, knorm_25=0)), "equal_call", at_most=0.1)
    assert [one.holds for one in found.policies] == [True, False, False]
    assert found.smallest is not None
    assert found.smallest.policy == "knorm:budget=0.75"
    expected = certify(
        frame(losses(100, knorm_75=0, knorm_5=30, knorm_25=0)), "equal_call", at_most=0.1, confidence=None
    )
    assert [round(one.bound, 3) for one in expected.policies] == [0.01, 0.307, 0.307]


def test_families_share_the_error_and_the_fewest_bytes_win() -> None:
    one = certify(frame(losses(80, knorm_75=0, knorm_5=0)), "equal_call", at_most=0.05)
    two = certify(frame(losses(80, knorm_75=0, snapkv_5=0)), "equal_call", at_most=0.05)
    assert two.policies[0].bound > one.policies[0].bound
    assert two.smallest is not None
    assert two.smallest.policy == "snapkv:budget=0.5"
    assert two.by_family() == {"knorm": two.policies[0], "snapkv": two.policies[1]}


def test_no_policy_but_full_is_said_in_words_and_tables() -> None:
    found = certify(frame(losses(60, knorm_5=50)), "equal_call", at_most=0.1)
    assert found.smallest is None
    assert "No policy but full" in repr(found)
    assert "does not hold" in found._repr_html_()
    assert [one["metric"] for one in found.rows()] == ["loss_bound", "certified"]
    assert found.frame().columns == ["policy", "family", "kept", "loss", "bound", "holds"]


def test_the_loss_of_a_grade_is_what_full_has_more() -> None:
    rows = frame(losses(40, knorm_5=4), metric="accuracy")
    assert certify(rows, "accuracy", at_most=0.3).policies[0].loss == pytest.approx(0.1)
    without = rows.filter((pl.col("policy") != "full") | (pl.col("metric") != "accuracy"))
    with pytest.raises(RunError, match="measure full beside the others"):
        certify(without, "accuracy", at_most=0.3)


def test_rows_that_prove_nothing_are_refused_with_what_to_choose() -> None:
    flips = frame(losses(40, knorm_5=4), metric="tool_flip", kinds=("name", "argument"))
    with pytest.raises(RunError, match="kinds name and argument; choose one"):
        certify(flips, "tool_flip", at_most=0.3)
    with pytest.raises(RunError, match="no kind 'prose'"):
        certify(flips, "tool_flip", at_most=0.3, kind="prose")
    assert certify(flips, "tool_flip", at_most=0.3, kind="name").items == 40
    with pytest.raises(RunError, match="kl is in nats and has no upper bound"):
        certify(frame(losses(40, knorm_5=4), metric="kl"), "kl", at_most=0.3)
    with pytest.raises(RunError, match="no top1 of single items; choose equal_call"):
        certify(frame(losses(40, knorm_5=4)), "top1", at_most=0.3)
    twice = pl.concat([flips, flips.with_columns(pl.lit("others").alias("workload"))])
    with pytest.raises(RunError, match="one bound holds for the items of one workload"):
        certify(twice, "tool_flip", at_most=0.3, kind="name")
    void = frame(losses(40, knorm_5=4), metric="accuracy").with_columns(pl.lit("full has 0.10").alias("void"))
    with pytest.raises(RunError, match="full itself fails the task"):
        certify(void, "accuracy", at_most=0.3)


def test_a_grade_of_ones_own_can_be_certified() -> None:
    where: dict[str, Any] = {"turn": 1, "seed": 0}
    rows = [
        made
        for policy, value in (("full", 1.0), ("knorm", 0.9))
        for item in range(40)
        for made in (
            row(policy, "own", "kv_bytes_live", 100 * value, conversation=str(item), **where),
            grade_row(policy, "own", "digits", value, conversation=str(item), **where),
        )
    ]
    found = certify(pl.DataFrame(rows, schema=dict(SCHEMA)), "digits", at_most=0.3)
    assert found.policies[0].loss == pytest.approx(0.1)
    assert found.smallest is not None


def population(seed: int, items: int) -> pl.DataFrame:
    """Return items whose losses have known rates: 0, 4 %, 20 % by budget; they depend on each other as real ones do."""
    hard = np.random.default_rng(seed).random(items)
    rates = dict(zip((f"knorm:budget={budget}" for budget in BUDGETS), (0.0, 0.04, 0.2), strict=True))
    return frame({policy: (hard < rate) * 1.0 for policy, rate in rates.items()})


def test_certificates_are_wrong_no_more_often_than_they_say() -> None:
    smallest = [certify(population(seed, 200), "equal_call", at_most=0.15).smallest for seed in range(200)]
    wrong = [one is not None and one.policy == "knorm:budget=0.25" for one in smallest]  # its rate is 0.2
    right = [one is not None and one.policy == "knorm:budget=0.5" for one in smallest]
    assert np.mean(wrong) <= 0.05
    assert np.mean(right) >= 0.9


@pytest.mark.parametrize("at_most", [0.04, 0.1, 0.21])
def test_the_expected_loss_over_two_hundred_splits_is_below_the_bound(at_most: float) -> None:
    found = coverage(population(0, 300), "equal_call", at_most=at_most, confidence=None)
    assert found.splits == 200
    assert found.mean_loss <= at_most
    assert sum(found.chosen.values()) == 200


def test_expected_bound_counts_one_further_item_that_loses_all() -> None:
    assert expected_bound(np.array([0.0, 1.0, 0.0])) == 0.5


def test_a_family_is_a_policy_without_its_settings() -> None:
    assert family("adakv(snapkv:window=8):budget=0.3|quantized:bits=4") == "adakv(snapkv)|quantized"


def test_requests_are_read_from_text_or_refused_with_examples() -> None:
    assert CertifyRequest.read("equal_call:1%@95%") == CertifyRequest("equal_call", 0.01, 0.95)
    assert CertifyRequest.read("tool_flip/name:0.02") == CertifyRequest("tool_flip", 0.02, 0.95, "name")
    assert CertifyRequest.read("accuracy:5%@expected") == CertifyRequest("accuracy", 0.05, None)
    for wrong in ("accuracy", "accuracy:2", "accuracy:0", "accuracy:1.2.3", ":1%", "accuracy:1%@100%"):
        with pytest.raises(RunError, match="such as|for example"):
            CertifyRequest.read(wrong)


def test_budgets_are_given_to_methods_that_evict_by_scores_only() -> None:
    found = with_budgets(["full", "paged", "knorm|quantized:bits=4", "adakv(snapkv)"], (0.25, 512, 1))
    wanted = [
        *("full", "paged", "knorm:budget=0.25|quantized:bits=4", "knorm:budget=512|quantized:bits=4"),
        *("quantized:bits=4", "adakv(snapkv):budget=0.25", "adakv(snapkv):budget=512"),
    ]
    assert found == [Policy.parse(one) for one in wanted]
    with pytest.raises(PolicyError, match="none of full, paged takes a budget"):
        with_budgets(["full", "paged"], (0.5,))
    with pytest.raises(PolicyError, match="budget=0 is not usable"):
        with_budgets(["knorm"], (0,))
