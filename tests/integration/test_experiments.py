"""Experiments with the real decoder, store and processes: what is measured is what happened."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from kvlab.cli.demo import POLICIES, demo
from kvlab.errors import PolicyWarning, RunError
from kvlab.experiments.conversations import Turn, warm_up
from kvlab.experiments.restart import serve_in_new_process
from kvlab.experiments.run import Run, compare, run
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.recording.recorder import Recorder
from kvlab.results import Results
from kvlab.systems import System


def values(results: Results, metric: str, **where: Any) -> list[float]:
    return [
        r["value"] for r in results.rows if r["metric"] == metric and all(r.get(key) == v for key, v in where.items())
    ]


@pytest.fixture(scope="module")
def compared(qwen3: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Results:
    policies = ["full", "paged:block=16", "tiered", "quantized:bits=8", "rotating:window=64"]
    folder = tmp_path_factory.mktemp("run")
    results = compare(policies, "chat", qwen3, turns=6, restart=True, folder=folder, progress=False)
    assert list(folder.iterdir()) == []
    return Results.load(results.save(folder))


def test_lossless_policies_are_exact_and_reuse_the_earlier_prompt(compared: Results) -> None:
    for policy in ("full", "paged:block=16", "tiered"):
        assert values(compared, "exact", policy=policy) == [1.0] * 6
    assert not values(compared, "exact", policy="quantized")
    prompts = values(compared, "prompt_tokens", policy="paged:block=16")
    for policy in ("paged:block=16", "tiered"):
        cached = values(compared, "cached_tokens", policy=policy)
        # An earlier prompt is reused whole; one token may be left where the prompts are equal up to it.
        kept = [now >= before - 1 for now, before in zip(cached[1:], prompts, strict=False)]
        assert kept == [True, True, policy == "tiered", True, True], "only the SSD is there after the restart"
    assert values(compared, "cached_tokens", policy="full") == [0.0] * 6


def test_a_new_process_finds_the_kv_of_the_old_one(compared: Results) -> None:
    (restarted,) = values(compared, "cached_tokens", policy="tiered", phase="restart")
    assert restarted >= values(compared, "prompt_tokens", policy="tiered", turn=3)[0] - 1
    matched = compared.recorders["tiered"].tagged("matched").sort("turn")
    assert matched["process"].to_list() == [0, 0, 0, 1, 1, 1]
    assert matched["ssd_tokens"].to_list()[3] == restarted
    assert len(values(compared, "ratio", policy="tiered")) == 1
    written = values(compared, "bytes_written", policy="tiered")
    assert written == sorted(written) and written[2] > 0 and written[-1] > written[2]


def test_live_bytes_and_evictions_are_those_of_the_policy(compared: Results) -> None:
    full, window = (values(compared, "kv_bytes_live", policy=policy)[-1] for policy in ("full", "rotating:window=64"))
    assert window < full / 2
    evicted = compared.recorders["rotating:window=64"].frame("evicted")
    assert evicted["position"].min() == 4  # behind the sinks
    assert set(evicted["layer"]) == {0, 1}


def test_every_turn_has_its_events(compared: Results) -> None:
    for policy, recorder in compared.recorders.items():
        assert recorder.frame("submitted").height == recorder.frame("finished").height == 6, policy
        times = recorder.tagged("first_token").sort("turn")["t"]
        assert times.is_sorted(), policy


def test_conversations_at_once_are_exact_too(random_weights: LoadedModel) -> None:
    results = compare(["paged:block=16"], "chat", random_weights, turns=4, n=4, concurrency=4, progress=False)
    assert values(results, "exact") == [1.0] * 16 and {r["n"] for r in results.rows} == {4}


def test_the_child_s_error_comes_back_in_one_line(qwen3: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="ended with status 2: the prompt has no tokens") as error:
        serve_in_new_process(
            qwen3,
            Policy.parse(f"tiered:dir={tmp_path}"),
            [Turn("c", 1, (), 2)],
            concurrency=1,
            recorder=Recorder(),
            tags={},
            done=lambda served: None,
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["snapkv:budget=0.125", "snapkv:budget=0.02,window=64", "snapkv:budget=0.125|paged"])
def test_a_warm_up_warns_of_nothing_that_the_workload_does_not_do(spec: str, qwen3: LoadedModel) -> None:
    """Its prompts are shorter than the workload's, so that a share of them is less than a window."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        warm_up(qwen3, Policy.parse(spec), [Turn("c", 1, tuple(range(5, 250)) * 2, 2)])
    assert not [one for one in seen if issubclass(one.category, PolicyWarning)]


def test_a_context_limit_refuses_turns_of_both_processes_and_ends_neither(qwen3: LoadedModel) -> None:
    prompts = [len(turn.prompt) for turn in Run("full", "chat", qwen3, turns=8).harness(progress=False).turns]
    policy, refused = "llama.cpp:context=512", [float(size >= 512) for size in prompts]
    assert refused[:4] == [0.0] * 4 and 1.0 in refused[4:]
    results = run(System.parse(policy), "chat", qwen3, turns=8, restart=True, progress=False)
    assert values(results, "refused", policy=policy) == refused
    assert values(results, "prompt_tokens", policy=policy) == prompts
    assert len(values(results, "ttft_ms", policy=policy)) == refused.count(0.0)
    assert values(results, "cached_tokens", policy=policy, phase="restart") == [0.0], "slots do not outlive the process"


def test_a_transcript_has_no_accuracy(qwen3: LoadedModel, tmp_path: Path) -> None:
    said = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    (tmp_path / "talk.jsonl").write_text(json.dumps(said) + "\n")
    results = run("paged", f"transcript:{tmp_path / 'talk.jsonl'}", qwen3, progress=False)
    assert len(values(results, "ttft_ms")) == 2 and not values(results, "accuracy")


def test_demo_on_the_bundled_model(bundled: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = demo(tmp_path / "run", model=bundled, turns=2, progress=False)
    assert results.policies == [str(Policy.parse(policy)) for policy in POLICIES]
    for policy in ("full", "paged", "tiered"):
        assert values(results, "exact", policy=policy) == [1.0] * 2
    assert values(results, "ttft_ms", policy="tiered", phase="restart")
    assert (tmp_path / "run" / "report.html").stat().st_size > 500_000
    assert "after restart" in capsys.readouterr().out


def test_compare_prints_one_document(qwen3: LoadedModel, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvlab", "compare", "--policies", "full,paged", "--workload", "chat"]
    command += ["--model", str(qwen3.path), "--turns", "2", "--out", str(tmp_path / "run"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["command"] == "compare" and document["provenance"]["mlx"]
    assert document["rows"] == Results.load(tmp_path / "run").rows
    assert "TTFT turn 1" in done.stderr
