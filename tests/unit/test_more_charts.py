"""Charts of notebooks: parts of the time to first token, tiers, quality, gaps, tokens as text."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from kvlab import events
from kvlab.charts.blocks import block_map, tier_bytes
from kvlab.charts.fidelity import quality_by_bytes
from kvlab.charts.gaps import token_gaps
from kvlab.charts.ttft import PARTS, ttft_parts, ttft_waterfall
from kvlab.errors import RunError
from kvlab.recorder import Recorder
from kvlab.results import Results, row
from kvlab.token_view import EVICTED, KEPT, RESTORED, SHARED, token_states, tokens_html


def recorded() -> Results:
    """Two turns under one policy: the first waits 10 ms and computes, the second restores."""
    recorder = Recorder()
    emit = recorder.emit
    emit(events.Submitted(0, 1.0, 100, 8, {"turn": 1}))
    emit(events.Matched(0, 1.012, 0, {}, "never_seen", 0.002))
    emit(events.Prefilled(0, 1.05, 64, 64, 100))
    emit(events.Prefilled(0, 1.09, 36, 100, 100))
    emit(events.FirstToken(0, 1.2, 7, seconds=0.1, queued=0.01))
    emit(events.Submitted(1, 2.0, 120, 8, {"turn": 2}))
    emit(events.Matched(1, 2.006, 100, {"ram": 100}, "diverged_at=100", 0.002))
    emit(events.Restored(1, 2.006, 100, 4000, 0.004))
    emit(events.Prefilled(1, 2.016, 20, 20, 20))
    emit(events.FirstToken(1, 2.03, 7, seconds=0.02))
    return Results([], {}, {"paged": recorder})


def test_the_parts_add_up_to_the_time_to_first_token() -> None:
    parts = ttft_parts(recorded().events)
    found = {(turn, part): round(ms, 3) for turn, part, ms in parts.select("turn", "part", "ms").iter_rows()}
    assert [found[1, part] for part in PARTS] == [10, 2, 0, 78, 10]
    assert [found[2, part] for part in PARTS] == [0, 2, 4, 10, 4]


def test_without_a_store_there_is_no_lookup() -> None:
    recorder = Recorder()
    recorder.emit(events.Submitted(0, 1.0, 10, 8, {"turn": 1}))
    recorder.emit(events.FirstToken(0, 1.1, 7, seconds=0.05, queued=0.01))
    parts = ttft_parts(Results([], {}, {"full": recorder}).events)
    assert [round(ms, 3) for ms in parts["ms"]] == [10, 0, 0, 0, 40]


def test_an_older_record_is_refused() -> None:
    recorder = Recorder()
    recorder.emit(events.FirstToken(0, 1.1, 7))
    with pytest.raises(RunError, match="run the experiment again"):
        ttft_parts(Results([], {}, {"full": recorder}).events)


def test_the_waterfall_has_a_bar_a_turn() -> None:
    spec = ttft_waterfall(ttft_parts(recorded().events), turn=2).to_dict()
    assert spec["encoding"]["color"]["scale"]["domain"] == list(PARTS)
    assert spec["encoding"]["opacity"]["condition"]["test"] == "(datum.turn === 2)"
    bars = next(iter(spec["datasets"].values()))
    assert {bar["turn"] for bar in bars} == {1, 2}
    with pytest.raises(RunError, match="no turns of full; known are paged"):
        ttft_waterfall(ttft_parts(recorded().events), policies=["full"])


def blocks() -> pl.DataFrame:
    tiers = {1: {"a": "rrr"}, 2: {"a": "ssg", "b": "rr"}}
    names = {"r": "ram", "s": "ssd", "g": "gone"}
    found = [
        (step, who, i, names[tier])
        for step, rows in tiers.items()
        for who, row in rows.items()
        for i, tier in enumerate(row)
    ]
    return pl.DataFrame(found, schema=["step", "conversation", "block", "tier"], orient="row")


def test_blocks_of_one_tier_are_one_piece() -> None:
    spec = block_map(blocks()).to_dict()
    pieces = [(p["conversation"], p["tier"], p["start"], p["stop"]) for p in next(iter(spec["datasets"].values()))]
    assert pieces == [("a", "ssd", 0, 2), ("a", "gone", 2, 3), ("b", "ram", 0, 2)]
    first = block_map(blocks(), step=1).to_dict()
    assert [p["tier"] for p in next(iter(first["datasets"].values()))] == ["ram"]
    assert first["encoding"]["y"]["scale"]["domain"] == ["a", "b"]
    with pytest.raises(RunError, match="no request 7; there are 1 to 2"):
        block_map(blocks(), step=7)


def test_bytes_by_tier_are_marked() -> None:
    steps = pl.DataFrame({"step": [1, 2], "ram": [2_000_000, 1_000_000], "ssd": [0, 3_000_000]})
    spec = tier_bytes(steps, step=2).to_dict()
    line, rule = spec["layer"]
    assert {(p["tier"], p["step"]): p["bytes"] for p in spec["datasets"][line["data"]["name"]]} == {
        ("ram", 1): 2, ("ram", 2): 1, ("ssd", 1): 0, ("ssd", 2): 3,
    }  # fmt: skip
    assert spec["datasets"][rule["data"]["name"]] == [{"step": 2}]


def quality(metric: str) -> Results:
    rows = [row("full", "w", "kv_bytes_live", 4e6), row("full", "w", metric, 1.0), row("full", "w", metric, 0.5)]
    return Results(rows, {})


@pytest.mark.parametrize("metric", ["accuracy", "kl"])
def test_quality_is_a_point_a_policy(metric: str) -> None:
    spec = quality_by_bytes(quality(metric).frame(), metric).to_dict()
    (point,) = next(iter(spec["datasets"].values()))
    assert (point["kv_bytes"], point["quality"]) == (4.0, 0.75)


@pytest.mark.parametrize(("metric", "says"), [("taste", "no quality 'taste'"), ("kl", "no kl beside")])
def test_quality_that_is_not_there(metric: str, says: str) -> None:
    with pytest.raises(RunError, match=says):
        quality_by_bytes(quality("accuracy").frame(), metric)


def test_gaps_are_between_tokens_of_one_request() -> None:
    columns = ["policy", "request", "t"]
    first = pl.DataFrame([("full", 0, 0.0), ("full", 1, 0.005)], schema=columns, orient="row")
    later = pl.DataFrame([("full", 0, 0.010), ("full", 0, 0.030), ("full", 1, 0.015)], schema=columns, orient="row")
    spec = token_gaps(first, later).to_dict()
    curve = next(iter(spec["datasets"].values()))
    assert curve[0]["gap"] == pytest.approx(10) and curve[-1]["gap"] == pytest.approx(20)
    with pytest.raises(RunError, match="no gaps"):
        token_gaps(first, later.head(0))


def lost(*rows: tuple[int, int, int, int]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=dict.fromkeys(["layer", "head", "position", "step"], pl.Int64), orient="row")


def test_token_states() -> None:
    evicted = lost((0, 0, 1, 0), (0, 1, 1, 0), (0, 0, 3, 0), (0, 1, 4, 2))
    at = lambda step: token_states(6, 5, evicted, shared=1, cached=3, step=step, heads=2)  # noqa: E731
    assert [token.state for token in at(0)] == [SHARED, EVICTED, RESTORED, KEPT, KEPT, KEPT]
    assert [token.gone for token in at(0)] == [0, 1, 0, 0.5, 0, 0]
    assert at(2)[4].gone == 0.5
    assert [token.generated for token in at(0)] == [False] * 5 + [True]


def test_the_text_is_told_apart_without_styles_too() -> None:
    states = token_states(4, 3, lost((0, 0, 2, 0)), shared=1, cached=2)
    html = tokens_html(["<a>", "b", "c", "d"], states, title="x & y")
    assert "&lt;a&gt;</b>" in html and ">b</i>" in html and ">c</s>" in html and ">d</span>" in html
    assert "x &amp; y" in html and "kept 1" in html and "evicted 1" in html


def test_neighbours_of_one_state_are_one_element() -> None:
    html = tokens_html(["a", "b", "c"], token_states(3, 3, lost()))
    assert ">abc<" in html


def test_the_record_keeps_the_time_to_first_token(tmp_path: Any) -> None:
    results = recorded()
    results.save(tmp_path / "run")
    assert ttft_parts(Results.load(tmp_path / "run").events).equals(ttft_parts(results.events))
