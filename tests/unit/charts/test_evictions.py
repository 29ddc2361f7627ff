"""The map of evictions: runs of positions, and the panels of layers and heads."""

from __future__ import annotations

import polars as pl

from kvlab import charts
from tests.chart_kit import data_of, evicted


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


def test_eviction_map_of_one_request_layer_and_head() -> None:
    spec = charts.eviction_map(evicted(), request=1, layers=[1], heads=[0]).to_dict()
    assert [(p["start"], p["stop"]) for p in data_of(spec, spec)] == [(4, 5)]
    spec = charts.eviction_map(evicted(), request=2).to_dict()
    assert [(p["start"], p["stop"]) for p in data_of(spec, spec)] == [(3, 4)]
