"""What all charts have in common: their names, their colours, what they refuse, and that they can be drawn."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import altair as alt
import polars as pl
import pytest

from kvlab import charts
from kvlab.charts.policy_styles import policy_colors, policy_styles
from kvlab.errors import RunError
from tests.chart_kit import evicted, marks, rows, tokens


@pytest.mark.parametrize(
    ("draw", "frame", "says"),
    [
        (charts.ttft_by_turn, rows("full").filter(pl.col("metric") == "accuracy"), "no ttft_ms by turn"),
        (charts.accuracy_by_policy, rows("full").filter(pl.col("metric") == "ttft_ms"), "no known answers"),
        (charts.eviction_map, evicted().head(0), "nothing was evicted"),
        (charts.eviction_map, evicted().drop("head"), "no column 'head'"),
        (charts.kv_bytes_over_time, tokens().drop("t"), "no column 't'"),
    ],
)
def test_frames_without_what_is_drawn(draw: Any, frame: pl.DataFrame, says: str) -> None:
    with pytest.raises(RunError, match=says):
        draw(frame)


def test_every_chart_has_the_same_colours() -> None:
    frame = rows("full", "paged|quantized:bits=4", "tiered")
    wanted = policy_colors(["full", "paged|quantized:bits=4", "tiered"])
    for chart in (charts.ttft_by_turn(frame), charts.cached_tokens_by_turn(frame), charts.accuracy_by_policy(frame)):
        scales = [
            unit["encoding"]["color"]["scale"]
            for unit in marks(chart.to_dict())
            if unit["encoding"].get("color", {}).get("scale")
        ]
        assert scales
        for scale in scales:
            assert dict(zip(scale["domain"], scale["range"], strict=True)) == wanted


def test_colours_tell_policies_apart() -> None:
    policies = [
        "full",
        "paged",
        "tiered",
        "quantized:bits=8",
        "quantized:bits=4",
        "quantized:bits=2",
        "mine",
        "yours",
        "mine:k=2",
    ]
    assert len(set(policy_colors(policies[:8]).values())) == 8
    styles = policy_styles(policies)
    assert len({(style.color, style.variant) for style in styles.values()}) == len(policies)
    colors = policy_colors(policies)
    assert colors["full"] == policy_colors(["paged", "full"])["full"]
    assert all(len(color) == 7 for color in colors.values())


def test_charts_can_be_drawn() -> None:
    """The renderer accepts the specs: a wrong one would give an empty picture, or an error, only in the browser."""
    import vl_convert

    for chart in (
        charts.ttft_by_turn(rows("full")),
        charts.eviction_map(evicted()),
        charts.kv_bytes_over_time(tokens()),
    ):
        assert isinstance(chart, alt.TopLevelMixin)
        svg = vl_convert.vegalite_to_svg(chart.to_dict())
        assert svg.count("<path") > 4


def test_charts_know_no_decoder_no_store_and_no_models() -> None:
    code = (
        "import sys, kvlab.charts;"
        "folders = ('version', 'backends', 'charts', 'counts', 'errors', 'paths', 'tiers');"
        "others = {name for name in sys.modules if name.startswith('kvlab.') and name.split('.')[1] not in folders};"
        "others |= {'mlx.core'} & set(sys.modules);"
        "sys.exit(str(others) if others else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_chart_is_found_in_the_package() -> None:
    drawn = {name for name in dir(charts) if callable(getattr(charts, name))}
    assert drawn == set(charts.__all__)
    assert all(getattr(charts, name).__doc__ for name in drawn)
