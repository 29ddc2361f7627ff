"""Codecs at equal bytes: the points of the figure, its names, ranks, and which pairs count."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab import charts
from kvlab.errors import RunError
from kvlab.figures.on_codecs import STORED, label
from kvlab.results import row
from kvlab.results.kl_by_bytes import kl_by_stored_share
from tests.chart_kit import frame
from tests.codecs_script import ranks

KL = {"full": (0.0, 0.0), "quantized": (0.001, 0.003), "quantized:bits=4": (0.1, 0.3)}
BYTES = {"full": 1600.0, "quantized": 850.0, "quantized:bits=4": 450.0}


def rows() -> pl.DataFrame:
    made = []
    for policy, values in KL.items():
        made.append(row(policy, "texts", "kv_bytes_live", BYTES[policy], kind=STORED, conversation="a"))
        for item, value in zip("ab", values, strict=True):
            made.append(row(policy, "texts", "kv_bytes_live", 2 * BYTES[policy], kind="docs", conversation=item))
            made.append(row(policy, "texts", "kl", value, kind="docs", conversation=item))
    return frame(*made)


def test_points_have_the_share_in_16_bits_and_the_mean_with_its_interval() -> None:
    found = {one["policy"]: one for one in kl_by_stored_share(rows(), STORED).to_dicts()}
    assert list(found) == ["quantized", "quantized:bits=4"], "full has no place on a logarithmic axis"
    assert found["quantized"]["share"] == 850 / 1600, "bytes of the run in float32 do not count"
    four = found["quantized:bits=4"]
    assert four["kl"] == pytest.approx(0.2) and (four["low"], four["high"]) == pytest.approx((0.1, 0.3))
    assert four["items"] == 2


def test_points_without_bytes_of_full_or_without_kl_are_refused() -> None:
    with pytest.raises(RunError, match="no kv_bytes_live of full of the kind '8 bits'"):
        kl_by_stored_share(rows(), "8 bits")
    with pytest.raises(RunError, match="no kl of another policy"):
        kl_by_stored_share(rows().filter(pl.col("metric") != "kl"), STORED)


def test_chart_refuses_a_kl_that_has_no_logarithm() -> None:
    points = kl_by_stored_share(rows(), STORED).with_columns(pl.lit("quantized").alias("method"), label="policy")
    charts.kl_by_stored_bytes(points)
    with pytest.raises(RunError, match="logarithmic"):
        charts.kl_by_stored_bytes(points.with_columns(low=pl.lit(0.0)))
    with pytest.raises(RunError, match="the summary has 0"):
        charts.kl_by_stored_bytes(points.head(0))


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("quantized", "8/64"),
        ("quantized:bits=4,group=32", "4/32"),
        ("quantized:bits=8,v_bits=4", "k8v4"),
        ("rotated:bits=8,v_bits=4", "rotated k8v4"),
        ("kivi", "kivi 2"),
        ("kivi:bits=4,recent=0", "kivi 4, no window"),
        ("turboquant:bits=3,length=least", "turboquant 3, least"),
        ("turboquant:bits=3,projection=true", "turboquant 3, projection"),
    ],
)
def test_codecs_are_named_as_the_field_names_them(policy: str, name: str) -> None:
    assert label(policy) == name


def test_rank_correlation_of_known_lists() -> None:
    assert ranks.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert ranks.spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert ranks.spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert ranks.spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=12, unique=True))
def test_rank_correlation_does_not_change_where_the_order_does_not(values: list[float]) -> None:
    # A cube rounds small numbers to 0, and 10 times the place does not.
    places = [10.0 * sorted(values).index(value) for value in values]
    assert ranks.spearman(values, places) == pytest.approx(1)


def test_pairs_count_where_bytes_are_equal_and_say_whether_their_kl_can_be_told_apart() -> None:
    kl = {
        "quantized:bits=4": [0.1, 0.2, 0.3],
        "rotated": [0.2, 0.3, 0.5],
        "kivi": [0.1, 0.3, 0.2],
        "quantized": [0.01] * 3,
    }
    size = {"quantized:bits=4": 100.0, "rotated": 105.0, "kivi": 100.0, "quantized": 200.0}
    error = {"quantized:bits=4": 0.02, "rotated": 0.01, "kivi": 0.03, "quantized": 0.001}
    found = list(ranks.rank_rows("texts", {"keys": error}, kl, size))
    assert [(one["metric"], one["kind"]) for one in found][0] == ("rank_correlation", "keys")
    pairs = {(one["policy"], one["of"]): (one["kind"], one["value"]) for one in found[1:]}
    assert pairs == {
        ("quantized:bits=4", "rotated"): ("keys", 0.0),  # less error, and more KL on each text
        ("quantized:bits=4", "kivi"): ("keys, unclear", 0.0),
        ("rotated", "kivi"): ("keys, unclear", 0.0),
    }
