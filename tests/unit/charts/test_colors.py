"""Colours hold up: any two that one chart can show, seen by anyone, on light pages and on dark ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from coloraide import Color
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab import tiers
from kvlab.charts import colors
from kvlab.charts.colors import SERIES, Tone, on_dark
from kvlab.charts.policy_styles import DASHES, SHAPES, policy_styles
from kvlab.charts.ttft import PARTS
from tests.chart_gallery import TEN, gallery
from tests.chart_kit import marks

LEAST_DIFFERENCE = 12.0  # CIEDE2000: 2 is seen side by side, 12 is seen in thin lines apart from each other
LEAST_CONTRAST = 3.0  # WCAG 2.1, of graphical objects
DARK_PAGE = "#1c222c"  # the dashboard's cards, a little lighter than the dark page of charts


@functools.cache
def views(color: str) -> tuple[Any, ...]:
    """A colour as everyone sees it, and under full protanopia, deuteranopia and tritanopia.

    Machado et al. 2009 for all three, and Brettel et al. 1997 too for tritanopia, for which the former is less exact.
    """
    kinds = (("protan", "machado"), ("deutan", "machado"), ("tritan", "machado"), ("tritan", "brettel"))
    return Color(color), *(Color(color).filter(kind, method=method).clip() for kind, method in kinds)


def difference(a: str, b: str) -> float:
    return min(one.delta_e(other, method="2000") for one, other in zip(views(a), views(b), strict=True))


def closest(found: Sequence[str]) -> tuple[float, str, str]:
    return min((difference(a, b), a, b) for a, b in itertools.combinations(found, 2))


def contrast(a: str, b: str) -> float:
    return float(Color(a).contrast(b, method="wcag21"))


def test_the_measure_finds_colours_that_do_not_hold_up() -> None:
    assert difference("#7b5cc4", "#2f6db5") < 5  # violet and blue under deuteranopia
    assert difference("#ff0000", "#ff0000") == 0 and difference("#000000", "#ffffff") > 90


@pytest.mark.parametrize("page", ["light", "dark"])
def test_any_two_colours_of_a_chart_stay_apart_and_stand_out(page: str) -> None:
    series = [getattr(tone, page) for tone in SERIES]
    assert closest(series)[0] >= LEAST_DIFFERENCE, closest(series)
    assert {one: contrast(one, getattr(colors.PAGE, page)) for one in series if
            contrast(one, getattr(colors.PAGE, page)) < LEAST_CONTRAST} == {}  # fmt: skip


@pytest.mark.parametrize("page", ["light", "dark"])
def test_words_and_maps_can_be_read(page: str) -> None:
    ground = getattr(colors.PAGE, page)
    for ink in (colors.INK, colors.SOFT_INK, colors.FAINT_INK):
        assert contrast(getattr(ink, page), ground) >= 4.5
    assert contrast(getattr(colors.GUIDE, page), ground) >= LEAST_CONTRAST
    empty, first, last = (getattr(tone, page) for tone in (colors.EMPTY, colors.FIRST_EVICTED, colors.LAST_EVICTED))
    assert closest([empty, first, last])[0] >= LEAST_DIFFERENCE


def test_tiers_hold_up_on_both_pages_with_the_same_colours() -> None:
    own = [*(tier.color for tier in (tiers.LIVE, tiers.RAM, tiers.SSD)), tiers.UNDECLARED_COLOR]
    assert closest(own)[0] >= LEAST_DIFFERENCE, closest(own)
    for color in own:
        assert min(contrast(color, "#ffffff"), contrast(color, DARK_PAGE)) >= LEAST_CONTRAST, color


def test_parts_of_the_first_token_are_series_colours() -> None:
    assert set(PARTS.values()) <= {tone.light for tone in SERIES} and len(set(PARTS.values())) == len(PARTS)


def test_tones_can_be_told_from_one_another_by_their_light_colour() -> None:
    """So that a spec can be translated for a dark page."""
    dark: dict[str, str] = {}
    for tone in colors.TONES:
        assert dark.setdefault(tone.light, tone.dark) == tone.dark
    assert {tone for tone in vars(colors).values() if isinstance(tone, Tone)} == set(colors.TONES)


def test_dark_charts_have_no_colour_of_the_light_page() -> None:
    dark = {tone.dark for tone in colors.TONES}
    for name, chart in gallery(TEN[:3], 2).items():
        drawn = repr({key: value for key, value in on_dark(chart.to_dict()).items() if key != "datasets"})
        assert [tone.light for tone in colors.TONES if tone.light in drawn and tone.light not in dark] == [], name
        assert colors.PAGE.dark in drawn, name


def test_every_title_has_a_colour_that_a_dark_page_translates() -> None:
    tones = {tone.light for tone in colors.TONES}
    for name, chart in gallery(TEN[:3], 2).items():
        assert {color in tones for color in _title_colors(chart.to_dict())} == {True}, name


def _title_colors(view: dict[str, Any]) -> Iterator[str | None]:
    """Return the colour of the title of a chart and of each of its panels; None is the default, which is black."""
    if title := view.get("title"):
        yield title.get("color") if isinstance(title, dict) else None
    for parts in ("hconcat", "vconcat", "concat", "layer"):
        for part in view.get(parts, []):
            yield from _title_colors(part)
    if "spec" in view:
        yield from _title_colors(view["spec"])


specs = st.sampled_from(
    [*TEN, "random:budget=0.1", "tova", "h2o:budget=0.2", "omlx", "paged|quantized", "mine:k=2|paged"]
)
sets = st.one_of(
    st.lists(specs, min_size=1, unique=True), st.integers(1, 32).map(lambda n: [f"mine:k={i}" for i in range(n)])
)


@settings(deadline=None, max_examples=40)
@given(sets)
def test_any_set_of_policies_can_be_told_apart_by_colour_or_dash_and_shape(policies: list[str]) -> None:
    styles = policy_styles(policies)
    looks = [(style.tone, style.variant) for style in styles.values()]
    assert len(set(looks)) == len(policies) == len({style.label for style in styles.values()})
    assert len({tone for tone, _ in looks}) == len(policies) or len(policies) > len(SERIES)
    assert all(tone in SERIES and variant < len(DASHES) == len(SHAPES) for tone, variant in looks)


def test_settings_of_one_method_share_a_colour_where_colours_run_out() -> None:
    styles = policy_styles(TEN)
    assert len({styles[policy].tone for policy in TEN if "snapkv" in policy}) == 1
    assert len({styles[policy].tone for policy in TEN}) == 7
    assert policy_styles(["full", "tiered"])["tiered"] == dataclasses.replace(styles["tiered"], label="tiered")


def colors_of(spec: dict[str, Any]) -> dict[str, str]:
    """The colour of each policy in a chart."""
    found: dict[str, str] = {}
    for unit in marks(spec.get("spec", spec)):
        channel = unit.get("encoding", {}).get("color", {})
        if channel.get("field") == "policy":
            found |= dict(zip(channel["scale"]["domain"], channel["scale"]["range"], strict=True))
    return found


@pytest.mark.parametrize("policies", [TEN, TEN[:5]])
def test_a_policy_has_one_colour_in_all_charts_of_a_set(policies: tuple[str, ...]) -> None:
    wanted = {style.label: style.color for style in policy_styles(policies).values()}
    found = {name: colors_of(chart.to_dict()) for name, chart in gallery(policies, 3).items()}
    found = {name: one for name, one in found.items() if one}
    assert len(found) >= 10
    assert {name: one for name, one in found.items() if one != wanted} == {}


def test_a_part_of_a_set_has_the_labels_and_colours_of_the_set() -> None:
    from kvlab import charts
    from tests.chart_gallery import run_rows

    part = run_rows(["snapkv", "mine:k=1"], 2)
    own = colors_of(charts.ttft_by_turn(part).to_dict())
    whole = colors_of(charts.ttft_by_turn(part, among=[*TEN, "mine:k=1"]).to_dict())
    styles = policy_styles([*TEN, "mine:k=1"])
    assert set(own) == {"snapkv", "mine:k=1"}
    assert whole == {styles[name].label: styles[name].color for name in ("snapkv", "mine:k=1")}
    assert "snapkv:budget=0.5" in whole
