"""Axes of counts have whole ticks, each once; names beside lines and points do not cover each other."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.charts.axes import whole_ticks
from kvlab.charts.direct_labels import Anchor, at_line_ends, beside_points, split_name
from tests.chart_gallery import TEN, gallery


@given(st.integers(-5, 10**7), st.integers(0, 10**7), st.integers(2, 20))
def test_ticks_are_whole_numbers_at_equal_distances(low: int, span: int, most: int) -> None:
    ticks = whole_ticks((low, low + span), most)
    assert 1 <= len(ticks) <= most + 1 or span > 0
    assert all(low <= tick <= low + span for tick in ticks)
    assert len({b - a for a, b in itertools.pairwise(ticks)}) <= 1
    assert span >= most or ticks == list(range(low, low + span + 1))


def test_no_values_have_no_ticks() -> None:
    assert whole_ticks([]) == []
    assert whole_ticks([3, 3]) == [3]


def axis_labels(svg: str) -> list[list[str]]:
    """The labels of each axis."""
    axes = re.split(r'class="mark-text role-axis-label"', svg)[1:]
    return [re.findall(r"<text[^>]*>([^<]*)</text>", axis.split("</g>")[0]) for axis in axes]


@pytest.mark.parametrize("turns", [1, 3, 40])
def test_no_axis_says_a_number_twice(turns: int) -> None:
    """The class: few counts on a wide axis, where ticks at fractions are rounded to the same label."""
    import vl_convert

    for name, chart in gallery(TEN[:2], turns).items():
        found = axis_labels(vl_convert.vegalite_to_svg(chart.to_dict()))
        assert found, name
        for labels in found:
            shown = [label for label in labels if label]
            assert len(set(shown)) == len(shown), (name, shown)


points = st.lists(
    st.builds(Anchor, st.floats(0, 560), st.floats(0, 300), st.sampled_from([*TEN])), min_size=1, max_size=12
)


@given(points)
def test_names_at_line_ends_keep_their_order_and_do_not_cover_each_other(anchors: list[Anchor]) -> None:
    placed = at_line_ends(anchors, 576, 300)
    assert [one.anchor for one in placed] == sorted(anchors, key=lambda one: one.y)
    for above, below in itertools.pairwise(placed):
        assert above.box[3] <= below.box[1] + 1e-6
    assert placed[-1].box[3] <= 300 + 7


def test_a_name_alone_stands_beside_its_point() -> None:
    (alone,) = at_line_ends([Anchor(560, 120, "full")], 576, 300)
    assert alone.y == 120
    (beside,) = beside_points([Anchor(100, 120, "full")], 560, 300)
    assert (beside.align, beside.y) == ("left", 120)
    (edge,) = beside_points([Anchor(555, 120, "snapkv:budget=0.25")], 560, 300)
    assert edge.align == "right" and edge.box[2] <= 560


@given(points)
def test_names_beside_points_do_not_cover_each_other(anchors: list[Anchor]) -> None:
    placed = beside_points(anchors, 560, 300)
    assert len(placed) == len(anchors)
    for a, b in itertools.combinations(placed, 2):
        apart = a.box[2] <= b.box[0] or b.box[2] <= a.box[0] or a.box[3] <= b.box[1] or b.box[3] <= a.box[1]
        assert apart


def test_a_long_name_is_split_before_a_module_and_loses_nothing() -> None:
    assert split_name("snapkv:budget=0.25") == ["snapkv:budget=0.25"]
    lines = split_name(TEN[-1])
    assert len(lines) == 2 and "".join(lines) == TEN[-1] and lines[1].startswith("|")


def test_ten_policies_are_all_named_in_every_chart_of_policies() -> None:
    """Whole, in a legend, beside their lines, over their panels or at their bars."""
    import vl_convert

    from kvlab.charts.policy_styles import method_of, policy_styles

    labels = [style.label for style in policy_styles(TEN).values()]
    skipped = ("gaps_beside", "bytes_", "block_map", "eviction_map", "ttft_waterfall-one", "ttft_after_restart")
    skipped = (*skipped, "kl_by_stored_bytes")  # of codecs of its own
    for name, chart in gallery().items():
        if name.startswith(skipped):
            continue
        svg: Any = vl_convert.vegalite_to_svg(chart.to_dict())
        texts = re.sub(r"</?tspan[^>]*>", "", svg)
        texts = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", texts))
        by_method = ("quality_by_live_bytes", "accuracy_by_kept_kv", "accuracy_by_method", "measures_by_method")
        wanted = {method_of(policy) for policy in TEN} if name in by_method else labels
        assert [label for label in wanted if label not in texts] == [], name
        assert "…" not in texts, name
