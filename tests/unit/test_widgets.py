"""Panels: what they show, live and static, and what they say of choices that cannot be."""

from __future__ import annotations

import base64
from typing import Any

import altair as alt
import ipywidgets
import polars as pl
import pytest

from kvlab import widgets
from kvlab.errors import KvlabError, PolicyError, RunError
from kvlab.inspection import BlockResidency
from kvlab.policies import Policy
from kvlab.recording import events
from kvlab.recording.recorder import Recorder
from kvlab.results import Results, row
from kvlab.widgets import Drawn, Panel, panel
from kvlab.widgets.evictions import spec
from tests.chart_gallery import TEN, run_rows


def chart(high: float = 1.0) -> Any:
    data = pl.DataFrame({"x": [0, 1], "y": [0.0, high]})
    return alt.Chart(data, title="a line").mark_line().encode(x="x:Q", y="y:Q")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """What panels display."""
    kept: list[tuple[dict[str, Any], Any]] = []
    monkeypatch.setattr(panel, "display", lambda data, metadata=None, raw=False: kept.append((data, metadata)))
    return kept


def slider(draw: Any) -> Panel:
    return Panel({"x": ipywidgets.IntSlider(value=1, min=0, max=5)}, draw)


def test_a_change_draws_anew() -> None:
    made = slider(lambda x: Drawn(html=f"<p>{x}</p>"))
    before = made._picture.value
    made.set(x=3)
    assert "<p>1</p>" in before and "<p>3</p>" in made._picture.value


def test_a_wrong_choice_is_one_line_over_the_last_good_picture() -> None:
    def draw(x: int) -> Drawn:
        if x == 4:
            raise PolicyError("no such thing;\nwrite <another>")
        if x == 5:
            raise TypeError("a scorer's own trouble")
        return Drawn(html=f"<p>{x}</p>")

    made = slider(draw)
    made.set(x=4)
    assert made.message == "no such thing; write <another>"
    assert "&lt;another&gt;" in made._message.value and "<p>1</p>" in made._picture.value
    made.set(x=5)
    assert made.message == "TypeError: a scorer's own trouble"
    made.set(x=2)
    assert made.message == made._message.value == ""


def test_a_draw_that_changes_a_control_does_not_draw_again() -> None:
    calls = []

    def draw(x: int) -> Drawn:
        calls.append(x)
        made.controls["x"].value = 0
        return Drawn(html=str(x))

    made = slider(lambda x: Drawn())
    made._draw = draw
    made.set(x=3)
    assert calls == [3]


def test_an_unknown_control_is_named() -> None:
    with pytest.raises(KvlabError, match="no control 'z'; there are x"):
        slider(lambda x: Drawn()).set(z=1)


def test_html_is_shown_as_it_is_where_no_kernel_runs(shown: list[Any]) -> None:
    slider(lambda x: Drawn("note", "<p>text</p>"))._ipython_display_()
    ((data, _),) = shown
    assert "<p>text</p>" in data["text/html"] and "note" in data["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_chart_is_a_picture_where_no_kernel_runs(shown: list[Any]) -> None:
    slider(lambda x: Drawn("note", chart=chart(x)))._ipython_display_()
    ((data, metadata),) = shown
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert metadata["image/png"]["width"] > 100
    assert "text/html" not in data and data["text/plain"] == "<chart: a line>"


def test_a_live_chart_stands_on_a_card_of_its_own() -> None:
    assert panel.live_html(Drawn(chart=chart())).count("<svg") == 1
    assert "background:#fff" in panel.live_html(Drawn(chart=chart()))


@pytest.mark.parametrize(
    ("policy", "reuse", "means"),
    [
        ("snapkv", False, "snapkv:budget=0.25"),
        ("snapkv", True, "snapkv:budget=0.25|paged"),
        ("rotating", False, "rotating:window=50"),
        ("full", True, "paged"),
        ("quantized:bits=4", False, "quantized:bits=4"),
        ("paged", False, "paged"),
    ],
)
def test_a_name_takes_the_budget_and_a_spec_stands(policy: str, reuse: bool, means: str) -> None:
    assert Policy.parse(spec(policy, 0.25, reuse, shortest=200)) == Policy.parse(means)


@pytest.mark.parametrize(
    ("policy", "reuse", "says"), [("snap", False, "did you mean 'snapkv'"), ("rotating", True, "drops rows")]
)
def test_choices_that_cannot_be(policy: str, reuse: bool, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        spec(policy, 0.25, reuse)


def quality_rows() -> pl.DataFrame:
    made = []
    for policy, size, right in (("full", 8e6, 1.0), ("quantized:bits=4", 1e6, 0.5)):
        made += [row(policy, "w", "kv_bytes_live", size), row(policy, "w", "accuracy", right)]
    return Results(made, {}).frame()


def test_quality_leaves_out_what_is_larger() -> None:
    made = widgets.quality_against_bytes(quality_rows())
    assert made.controls["measure"].options == ("accuracy",)
    both = next(iter(made.drawn.chart.to_dict()["datasets"].values()))
    made.set(at_most=1.0)
    one = next(iter(made.drawn.chart.to_dict()["datasets"].values()))
    assert len(both) == 2 and [point["policy"] for point in one] == ["quantized:bits=4"]
    with pytest.raises(RunError, match="no accuracy or kl or exact"):
        widgets.quality_against_bytes(quality_rows().filter(pl.col("metric") == "kv_bytes_live"))


def test_tiers_follow_the_slider() -> None:
    blocks = pl.DataFrame(
        [(1, "a", 0, "ram"), (2, "a", 0, "ssd"), (2, "b", 0, "ram")],
        schema=["step", "conversation", "block", "tier"], orient="row",
    )  # fmt: skip
    about = {"turn": 1, "cached_tokens": 0, "prompt_tokens": 9, "ttft_ms": 5.0, "miss": "never_seen", "ram": 10}
    steps = pl.DataFrame([{"step": i, "conversation": c, "ssd": 10 * i, **about} for i, c in ((1, "a"), (2, "b"))])
    made = widgets.tiers_over_time(BlockResidency(Policy.parse("tiered"), blocks, steps))
    assert "request 2" in made.drawn.note and "never_seen" in made.drawn.note
    made.set(request=1)
    spec = made.drawn.chart.to_dict()
    assert [(r["conversation"], r["tier"]) for r in next(iter(spec["datasets"].values()))] == [("a", "ram")]
    made.set(view="bytes")
    assert made.drawn.chart.to_dict()["title"]["text"] == "KV at rest by tier"


def recorded(*policies: str) -> Results:
    """Two turns under each policy, with the events that panels draw."""
    made, recorders = [], {}
    for policy in policies:
        emit = recorders.setdefault(policy, Recorder()).emit
        for request, turn in enumerate((1, 2)):
            at, tags = 10.0 * turn, {"policy": policy, "turn": turn, "conversation": "c"}
            emit(events.Submitted(request, at, 40 * turn, 8, tags))
            emit(events.Matched(request, at + 0.01, 20, {"ram": 20}, "never_seen", 0.002))
            emit(events.Prefilled(request, at + 0.05, 20, 20, 20))
            emit(events.FirstToken(request, at + 0.1, 7, seconds=0.1, queued=0.01))
            for step in (1, 2, 3):
                emit(events.Token(request, at + 0.1 + 0.01 * step, 7, step, 1000 * step))
            emit(events.Finished(request, at + 0.2, "length", 4, 3000))
            where: dict[str, Any] = {"turn": turn, "phase": "warm", "conversation": "c"}
            made += [row(policy, "w", metric, 9.0 * turn, **where) for metric in ("ttft_ms", "kv_bytes_live")]
    return Results(made, {}, recorders)


def moved(made: Panel) -> list[str]:
    """Set every control to each of its values; return what it drew, one after another."""
    drawn = []
    for name, control in made.controls.items():
        before = control.value
        many = (
            range(control.min, control.max + 1)
            if hasattr(control, "max")
            else getattr(control, "options", (True, False))
        )
        for value in many:
            made.set(**{name: value})
            assert made.message == "", (name, value)
            drawn.append(made._picture.value)
        made.set(**{name: before})
    return drawn


@pytest.mark.parametrize("make", [
    lambda: widgets.ttft_by_part(recorded("full", "paged")),
    lambda: widgets.ttft_by_part(recorded("snapkv", "snapkv:budget=0.25"), policy="snapkv"),
    lambda: widgets.agents_side_by_side({1: recorded("full"), 4: recorded("full", "paged", "tiered")}),
    lambda: widgets.agents_side_by_side({10: recorded(*TEN)}),
    lambda: widgets.quality_against_bytes(run_rows(TEN, 2)),
])  # fmt: skip
def test_every_control_of_a_panel_draws_at_every_value(make: Any) -> None:
    drawn = moved(make())
    assert len(drawn) > 2 and all("<svg" in picture for picture in drawn)
    assert len(set(drawn)) > 1


def test_a_turn_that_is_left_out_fades_no_other() -> None:
    made = widgets.ttft_by_part(recorded("full"))
    made.set(turn=1)
    assert "condition" in made.drawn.chart.to_dict()["encoding"]["opacity"], "turn 1 stands out"
    made.set(skip_first=True)
    assert "left out" in made.drawn.note and made.drawn.chart.to_dict()["encoding"]["opacity"] == {"value": 1.0}


def test_a_panel_keeps_labels_and_colours_when_it_leaves_policies_out() -> None:
    rows = quality_rows().vstack(Results([
        row("quantized", "w", "kv_bytes_live", 2e6), row("quantized", "w", "accuracy", 1.0),
    ], {}).frame())  # fmt: skip
    made = widgets.quality_against_bytes(rows)

    def looks() -> dict[str, str]:
        scale = made.drawn.chart.to_dict()["layer"][0]["encoding"]["color"]["scale"]
        return dict(zip(scale["domain"], scale["range"], strict=True))

    every = looks()
    made.set(at_most=1.0)
    assert looks() == {"quantized:bits=4": every["quantized:bits=4"]}
    made.set(at_most=2.0)
    assert looks() == {name: every[name] for name in ("quantized:bits=4", "quantized:bits=8")}


def test_agents_need_runs() -> None:
    with pytest.raises(RunError, match="no runs to show"):
        widgets.agents_side_by_side({})
