"""Charts: what their specs say, on frames made by hand."""

from __future__ import annotations

from typing import Any

import altair as alt
import polars as pl
import pytest

from kvlab import charts
from kvlab.charts import turns
from kvlab.charts.colors import policy_colors
from kvlab.errors import RunError
from kvlab.results import Results, row


def rows(*policies: str, conversations: int = 1, restart: str = "", kinds: tuple[str, ...] = ("call",)) -> pl.DataFrame:
    made = []
    for policy in policies:
        for turn in (1, 2, 3):
            for conversation in range(conversations):
                phase = "restart" if policy == restart and turn == 2 else "cold" if turn == 1 else "warm"
                where: dict[str, Any] = {"turn": turn, "phase": phase, "conversation": f"c{conversation}"}
                made.append(row(policy, "agent", "ttft_ms", 10 * turn + conversation, **where))
                made.append(row(policy, "agent", "cached_tokens", 5 * turn, **where))
                made.append(row(policy, "agent", "prompt_tokens", 6 * turn, **where))
                made.append(row(policy, "agent", "accuracy", turn % 2, kind=kinds[turn % len(kinds)], **where))
    return Results(made, {}).frame()


def evicted() -> pl.DataFrame:
    lost = [(1, 0, 0, p, 0) for p in (4, 5, 6, 9)] + [
        (1, 0, 0, 7, 1),
        (1, 1, 0, 4, 0),
        (1, 0, 1, 8, 2),
        (2, 0, 0, 3, 0),
    ]
    return pl.DataFrame(lost, schema=["request", "layer", "head", "position", "step"], orient="row")


def tokens() -> pl.DataFrame:
    events = [
        ("full", 0, 1.0, 100),
        ("full", 0, 1.1, 110),
        ("full", 1, 1.2, 50),
        ("paged", 0, 9.0, 70),
        ("paged", 0, 9.5, 80),
    ]
    return pl.DataFrame(events, schema=["policy", "request", "t", "kv_bytes"], orient="row")


def data_of(spec: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    data = part["data"]
    return data["values"] if "values" in data else spec["datasets"][data["name"]]


def marks(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The unit charts of a layered spec, depth first."""
    if "layer" in spec:
        return [unit for part in spec["layer"] for unit in marks({"data": spec.get("data"), **part})]
    return [spec]


def test_ttft_by_turn() -> None:
    spec = charts.ttft_by_turn(rows("full", "tiered", restart="tiered")).to_dict()
    assert spec["title"]["text"] == "Time to first token by turn"
    lines = [unit for unit in marks(spec) if unit["mark"]["type"] == "line"]
    assert len(lines) == 2
    assert lines[0]["encoding"]["y"]["title"] == "time to first token (ms)"
    assert lines[0]["encoding"]["y"]["scale"]["zero"] is True
    assert lines[0]["mark"]["strokeWidth"] > lines[1]["mark"]["strokeWidth"]
    points = {(p["policy"], p["turn"]): p["value"] for p in data_of(spec, lines[0])}
    assert points["tiered", 2] == 20 and len(points) == 6
    (diamond,) = (unit for unit in marks(spec) if unit["mark"].get("shape") == "diamond")
    assert [(p["policy"], p["turn"]) for p in data_of(spec, diamond)] == [("tiered", 2)]


def test_ttft_without_a_restart_has_no_diamond_and_may_be_logarithmic() -> None:
    spec = charts.ttft_by_turn(rows("full"), log=True).to_dict()
    assert not any(unit["mark"].get("shape") == "diamond" for unit in marks(spec))
    assert marks(spec)[-1]["encoding"]["y"]["scale"]["type"] == "log"


def test_repeats_give_a_band_around_the_mean() -> None:
    spec = charts.ttft_by_turn(rows("full", conversations=3)).to_dict()
    (band,) = (unit for unit in marks(spec) if unit["mark"]["type"] == "area")
    first = data_of(spec, band)[0]
    assert (first["low"], first["value"], first["high"], first["count"]) == (10, 11, 12, 3)


def test_cached_tokens_stand_beside_the_prompt() -> None:
    spec = charts.cached_tokens_by_turn(rows("full", "paged")).to_dict()
    dashed = marks(spec)[0]
    assert dashed["mark"]["strokeDash"] == [5, 4]
    assert [p["value"] for p in data_of(spec, dashed)] == [6, 12, 18]


def test_live_kv_adds_up_and_falls_when_a_request_ends() -> None:
    columns = ["policy", "request", "t"]
    finished = pl.DataFrame([("full", 0, 1.3), ("full", 1, 1.4), ("paged", 0, 9.6)], schema=columns, orient="row")
    submitted = pl.DataFrame([("full", 0, 0.9), ("full", 1, 1.15), ("paged", 0, 8.9)], schema=columns, orient="row")
    spec = charts.kv_bytes_over_time(tokens(), finished, submitted).to_dict()
    (line,) = marks(spec)
    points = [p for p in data_of(spec, line) if p["policy"] == "full"]
    assert [(round(p["seconds"], 3), round(p["kv_bytes"] * 1e6)) for p in points] == [
        (0, 0), (0.1, 100), (0.2, 110), (0.25, 110), (0.3, 160), (0.4, 160), (0.4, 50), (0.5, 50), (0.5, 0),
    ]  # fmt: skip
    assert max(p["seconds"] for p in data_of(spec, line)) == pytest.approx(0.7, abs=1e-5)


def test_live_kv_of_requests_that_start_together_rises_as_a_sum() -> None:
    columns = ["policy", "request", "t", "kv_bytes"]
    both = pl.DataFrame([("full", 0, 2.0, 100), ("full", 1, 4.0, 100)], schema=columns, orient="row")
    submitted = pl.DataFrame([("full", 0, 0.0), ("full", 1, 0.0)], schema=columns[:3], orient="row")
    spec = charts.kv_bytes_over_time(both, submitted=submitted).to_dict()
    points = data_of(spec, marks(spec)[0])
    assert [(p["seconds"], round(p["kv_bytes"] * 1e6)) for p in points] == [(0, 0), (2, 150), (4, 200)]


def test_live_kv_is_thinned() -> None:
    many = pl.DataFrame({"policy": ["full"] * 5000, "request": [0] * 5000, "t": range(5000), "kv_bytes": range(5000)})
    spec = charts.kv_bytes_over_time(many).to_dict()
    assert 400 <= len(data_of(spec, marks(spec)[0])) <= turns.MAX_POINTS


def test_eviction_map_draws_runs_of_positions_from_their_step_on() -> None:
    spec = charts.eviction_map(evicted(), length=20).to_dict()
    assert spec["title"]["text"] == "What was evicted, request 1"
    assert spec["facet"]["row"]["field"] == "layer" and spec["facet"]["column"]["field"] == "head"
    drawn = {(p["layer"], p["head"], p["step"], p["start"], p["stop"], p["until"]) for p in data_of(spec, spec)}
    assert drawn == {
        (0, 0, 0, 4, 7, 3),
        (0, 0, 0, 9, 10, 3),
        (0, 0, 1, 7, 8, 3),
        (1, 0, 0, 4, 5, 3),
        (0, 1, 2, 8, 9, 3),
    }
    assert spec["spec"]["encoding"]["x"]["scale"]["domain"] == [0, 20]
    y = spec["spec"]["encoding"]["y"]["scale"]
    assert y["domain"] == [0, 3] and y["reverse"] is True
    longer = charts.eviction_map(evicted(), steps=9).to_dict()
    assert {p["until"] for p in data_of(longer, longer)} == {9}


def test_a_large_model_gives_a_picture_that_can_be_read() -> None:
    lost = [(0, layer, head, 2 * p, 0) for layer in range(32) for head in range(8) for p in range(300)]
    frame = pl.DataFrame(lost, schema=["request", "layer", "head", "position", "step"], orient="row")
    spec = charts.eviction_map(frame).to_dict()
    drawn = data_of(spec, spec)
    assert {p["layer"] for p in drawn} == {0, 6, 12, 19, 25, 31} and {p["head"] for p in drawn} == {0, 2, 5, 7}
    assert {p["layer"] for p in data_of(*[charts.eviction_map(frame, layers=[3]).to_dict()] * 2)} == {3}


def test_many_policies_fit_one_picture() -> None:
    many = [(f"p{i}", 0, float(t), t) for i in range(12) for t in range(1000)]
    frame = pl.DataFrame(many, schema=["policy", "request", "t", "kv_bytes"], orient="row")
    assert charts.kv_bytes_over_time(frame).to_dict()


def test_eviction_map_of_one_request_layer_and_head() -> None:
    spec = charts.eviction_map(evicted(), request=1, layers=[1], heads=[0]).to_dict()
    assert [(p["start"], p["stop"]) for p in data_of(spec, spec)] == [(4, 5)]
    spec = charts.eviction_map(evicted(), request=2).to_dict()
    assert [(p["start"], p["stop"]) for p in data_of(spec, spec)] == [(3, 4)]


def test_accuracy_has_a_group_for_each_kind() -> None:
    spec = charts.accuracy_by_policy(rows("full", "rotating", kinds=("call", "recall"))).to_dict()
    assert spec["facet"]["column"]["field"] == "kind"
    bars = {(p["policy"], p["kind"]): p["score"] for p in data_of(spec, spec)}
    assert bars == {
        (p, kind): score for p in ("full", "rotating") for kind, score in (("call", "0/1"), ("recall", "2/2"))
    }
    assert "facet" not in charts.accuracy_by_policy(rows("full")).to_dict()


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
    colors = policy_colors(policies)
    assert len(set(colors.values())) == len(policies)
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
