"""Every benchmark gives its ratios, on a real model's folder too, whatever time and context it has."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvlab.bench import get, names
from kvlab.bench.overhead import PROMPT
from kvlab.bench.speed import measure_speed
from kvlab.errors import RunError
from kvlab.models import bundled_path, load
from tests.helpers import random_model_folder

Rows = list[dict[str, Any]]
SHORTENED: dict[str, dict[str, Any]] = {
    "decode": {"cases": (("ragged", 8), ("shared", 2))},
    "gemm": {"sizes": (64,)},
    "overhead": {"ns": (1, 2)},
}


class HurriedClock:
    """Every look at it costs ten seconds: nothing can be fitted into any budget."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def _ratios(rows: Rows) -> list[tuple[Any, ...]]:
    return [
        (row["workload"], row.get("model"), row.get("n"), row["of"], row["to"])
        for row in rows
        if row["metric"] == "ratio"
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose context holds fewer tokens than the benchmarks' prompts."""
    return random_model_folder("qwen3", tmp_path_factory.mktemp("short"), max_position_embeddings=2600)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a context that holds the first turns of an agent's conversation only."""
    folder = tmp_path_factory.mktemp("roomy") / "tiny"
    shutil.copytree(bundled_path(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1880}))
    return folder


@pytest.fixture(scope="module")
def hurried(folder: Path, roomy: Path) -> Callable[[str], Rows]:
    made: dict[str, Rows] = {}

    def run(name: str) -> Rows:
        if name not in made:
            clock, shortened = HurriedClock(), SHORTENED.get(name, {})
            made[name] = get(name)(model=str(roomy if name == "reuse" else folder), clock=clock, **shortened)
        return made[name]

    return run


@pytest.mark.parametrize("name", names())
def test_benchmark_without_time_gives_its_ratios_all_the_same(name: str, hurried: Callable[[str], Rows]) -> None:
    rows = hurried(name)
    assert _ratios(rows)
    for row in rows:
        assert {"policy", "workload", "metric", "value", "unit"} <= row.keys() and np.isfinite(row["value"])
    for row in rows:
        if row["metric"] == "skipped":
            assert row["value"] > 0 and row["unit"] and row["reason"] in ("time", "context", "memory")
    if name != "gemm":
        assert any(row["metric"] == "skipped" and row["reason"] == "time" for row in rows)


def test_prompts_stay_within_the_context_of_the_model(hurried: Callable[[str], Rows], folder: Path) -> None:
    for name in ("decode", "pace", "restore"):
        cut = [row for row in hurried(name) if row["metric"] == "skipped" and row["reason"] == "context"]
        assert {row["model"] for row in cut} == {load(folder).name}
        assert all(row["unit"] == "prompt tokens" for row in cut)


def test_reuse_leaves_out_turns_beyond_the_context(hurried: Callable[[str], Rows], tmp_path: Path) -> None:
    rows = hurried("reuse")
    [cut] = [row for row in rows if row["metric"] == "skipped" and row["reason"] == "context"]
    assert cut["unit"] == "turns"
    assert {row["turn"] for row in rows if row["metric"] == "ratio"} == {15 - cut["value"]}
    short = random_model_folder("qwen3", tmp_path, max_position_embeddings=500)
    with pytest.raises(RunError, match="too short for a second turn"):
        get("reuse")(model=str(short), conversations=1, seconds=math.inf)


def test_overhead_of_one_sequence_is_compared_with_stream_generate_too() -> None:
    rows = get("overhead")(ns=(1, 2), tokens=4, rounds=1, seconds=math.inf)
    assert _ratios(rows) == [
        ("overhead", "tiny", 1, "full", "mlx-lm"),
        ("overhead", "tiny", 1, "full", "stream_generate"),
        ("overhead", "tiny", 2, "full", "mlx-lm"),
    ]
    assert not any(row["metric"] == "skipped" for row in rows)


def test_overhead_answers_fit_the_context_behind_the_prompt(tmp_path: Path) -> None:
    folder = random_model_folder("llama", tmp_path, max_position_embeddings=PROMPT)
    rows = get("overhead")(model=str(folder), ns=(1,), rounds=1, seconds=math.inf)
    [cut] = [row for row in rows if row["metric"] == "skipped"]
    assert (cut["unit"], cut["reason"], cut["value"]) == ("answer tokens", "context", 192 - PROMPT // 2)


def test_decode_gives_both_models_and_workloads() -> None:
    rows = get("decode")(cases=(("shared", 2), ("private", 2)), tokens=4, rounds=1, seconds=math.inf)
    compared = [row for row in rows if row.get("to") == "mlx-lm"]
    assert [(row["model"], row["workload"]) for row in compared] == [
        (model, workload) for model in ("tiny", "qwen3-random-6x384") for workload in ("shared", "private")
    ]
    exact = [row["value"] for row in rows if row["metric"] == "exact"]
    assert exact == [1.0] * 4


def test_speed_counts_the_bytes_of_one_token() -> None:
    loaded = load()
    arguments = loaded.model.args
    per_layer = 2 * arguments.num_key_value_heads * arguments.head_dim * 4
    assert measure_speed(loaded).kv_bytes == loaded.n_layers * per_layer
