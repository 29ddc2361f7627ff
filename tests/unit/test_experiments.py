"""Runs and comparisons over a fake decoder: prompts, phases, exactness, restarts, rows."""

from __future__ import annotations

import pickle
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvlab.cli import demo
from kvlab.cli.main import cli, split_policies
from kvlab.errors import PolicyError
from kvlab.experiments import conversations, runner
from kvlab.experiments.conversations import ServedTurn, Turn
from kvlab.experiments.run import Run, compare, compare_command, run
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.recording.recorder import Recorder
from kvlab.results import Results
from kvlab.systems import System
from kvlab.workloads import load_workload
from tests.fake_decoder import FakeDecoder


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDecoder.disk = {}
    monkeypatch.setattr(conversations, "Decoder", FakeDecoder)
    monkeypatch.setattr(runner, "serve_in_new_process", in_this_process)


def in_this_process(
    model: LoadedModel, policy: Policy, asked: Sequence[Turn], *, recorder: Recorder, **options: Any
) -> list[ServedTurn]:
    child = Recorder()
    served = conversations.serve_turns(model, policy, asked, recorder=child, **options)
    recorder.merge(child)
    return served


def values(results: Results, metric: str, **where: Any) -> list[float]:
    keys: Mapping[str, Any] = {"metric": metric, **where}
    return [r["value"] for r in results.rows if all(r.get(name) == value for name, value in keys.items())]


def test_a_run_has_a_row_a_turn_and_metric(qwen3: LoadedModel) -> None:
    results = run("paged", "chat", qwen3, turns=4, seed=5, progress=False)
    measured = {"ttft_ms", "tpot_ms", "itl_p99_ms", "tokens_per_s", "prompt_tokens", "cached_tokens", "kv_bytes_live",
                "kv_bytes_ram", "kv_bytes_ssd", "bytes_written", "accuracy", "text"}  # fmt: skip
    assert {r["metric"] for r in results.rows} <= measured
    assert {r["metric"] for r in results.rows} >= measured - {"accuracy"}
    assert [r["turn"] for r in results.rows if r["metric"] == "ttft_ms"] == [1, 2, 3, 4]
    first = results.rows[0]
    assert (first["policy"], first["workload"], first["n"], first["seed"], first["model"]) == (
        "paged", "chat", 1, 5, qwen3.name,
    )  # fmt: skip
    assert results.provenance["seed"] == 5 and results.provenance["mlx"] and results.provenance["model"] == qwen3.name


def test_phases_follow_what_was_cached(qwen3: LoadedModel) -> None:
    results = compare(["full", "paged"], "chat", qwen3, turns=3, progress=False)
    phases = {(r["policy"], r["turn"]): r["phase"] for r in results.rows}
    assert [phases["full", turn] for turn in (1, 2, 3)] == ["cold"] * 3
    assert [phases["paged", turn] for turn in (1, 2, 3)] == ["cold", "warm", "warm"]
    assert values(results, "cached_tokens", policy="full") == [0, 0, 0]
    cached, prompts = values(results, "cached_tokens", policy="paged"), values(results, "prompt_tokens", policy="paged")
    assert cached == [0, prompts[0], prompts[1]]


def test_every_policy_sees_the_same_prompts(qwen3: LoadedModel) -> None:
    results = compare(["rotating:window=64", "paged", "tiered"], "agent", qwen3, turns=3, progress=False)
    prompts = [values(results, "prompt_tokens", policy=policy) for policy in results.policies]
    assert len(results.policies) == 3 and prompts[0] == prompts[1] == prompts[2]


def test_exact_is_for_lossless_policies_only(qwen3: LoadedModel) -> None:
    results = compare(["full", "paged", "rotating:window=64"], "chat", qwen3, turns=2, progress=False)
    assert values(results, "exact", policy="full") == [1, 1] and values(results, "exact", policy="paged") == [1, 1]
    assert values(results, "exact", policy="rotating:window=64") == []


def test_a_policy_that_changes_tokens_is_not_exact(qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(FakeDecoder):
        def generate(self, prompt: Sequence[int], **options: Any) -> Any:
            shifted = [*prompt[:-1], prompt[-1] + 1] if self.store and self.store.prompts else prompt
            return super().generate(shifted, **options)

    monkeypatch.setattr(conversations, "Decoder", Wrong)
    results = compare(["paged"], "chat", qwen3, turns=3, progress=False)
    assert values(results, "exact") == [1, 0, 0]


def test_the_reference_has_no_rows_unless_asked_for(qwen3: LoadedModel) -> None:
    assert compare(["paged"], "chat", qwen3, turns=2, progress=False).policies == ["paged"]
    assert compare(["paged", "full", "paged"], "chat", qwen3, turns=2, progress=False).policies == ["paged", "full"]


def test_restart_splits_the_conversation(qwen3: LoadedModel) -> None:
    results = compare(["tiered", "paged"], "chat", qwen3, turns=5, restart=True, progress=False)
    phases = {(r["policy"], r["turn"]): r["phase"] for r in results.rows if r["metric"] == "cached_tokens"}
    assert [phases["tiered", turn] for turn in range(1, 6)] == ["cold", "warm", "restart", "warm", "warm"]
    assert [phases["paged", turn] for turn in range(1, 6)] == ["cold", "warm", "restart", "warm", "warm"]
    (cold,) = values(results, "ttft_ms", policy="full", turn=3, phase="cold")
    (restarted,) = values(results, "ttft_ms", policy="tiered", turn=3, phase="restart")
    ratio = next(r for r in results.rows if r["metric"] == "ratio" and r["policy"] == "tiered")
    assert ratio["value"] == restarted / cold and ratio["unit"] == "x"
    assert (ratio["of"], ratio["to"]) == ("tiered ttft_ms restart", "full ttft_ms cold")
    assert len([r for r in results.rows if r["policy"] == "full"]) == 1
    submitted = results.recorders["tiered"].frame("submitted")
    assert submitted.sort("turn").select("turn", "process").rows() == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    assert submitted["request"].n_unique() == 5


def test_a_design_that_keeps_nothing_computes_the_turn_after_a_restart_anew(qwen3: LoadedModel) -> None:
    asked = ["full", "paged", "quantized", System.parse("ollama")]
    results = compare(asked, "chat", qwen3, turns=4, restart=True, progress=False)
    for policy in ("paged", "quantized", "ollama"):
        (prompt,) = values(results, "prompt_tokens", policy=policy, turn=3)
        assert values(results, "cached_tokens", policy=policy, turn=3, phase="restart") == [0]
        assert values(results, "ttft_ms", policy=policy, turn=3, phase="restart") == [prompt]
        submitted = results.recorders[policy].frame("submitted")
        assert submitted.sort("turn")["process"].to_list() == [0, 0, 1, 1]
    assert values(results, "cached_tokens", policy="paged", turn=4) == values(
        results, "prompt_tokens", policy="paged", turn=3
    )
    assert "restart" not in {r.get("phase") for r in results.rows if r["policy"] == "full"}


def test_a_turn_that_the_context_refuses_is_a_row_and_the_conversation_goes_on(qwen3: LoadedModel) -> None:
    prompts = values(run("full", "chat", qwen3, turns=12, progress=False), "prompt_tokens")
    system = System.parse(f"llama.cpp:context={int(prompts[5])}")
    context = system.config.context or 0  # padded, as the server does
    turn = next(turn for turn, size in enumerate(prompts, start=1) if size >= context)
    results = compare([system, "paged"], "chat", qwen3, turns=12, progress=False)
    of_system = [r for r in results.rows if r["policy"] == str(system)]
    refused = values(results, "refused", policy=str(system))
    assert refused == [float(size >= context) for size in prompts] and 0 < sum(refused) < 12
    assert values(results, "refused", policy="paged") == []
    assert [r["turn"] for r in of_system if r["metric"] == "ttft_ms"] == list(range(1, turn))
    assert values(results, "prompt_tokens", policy=str(system)) == prompts
    graded = [r["value"] for r in of_system if r["metric"] == "accuracy" and r["turn"] >= turn]
    assert graded and not any(graded)
    assert [r["value"] for r in of_system if r["metric"] == "text"] == [3.0] * (turn - 1) + [0.0] * (13 - turn)
    assert len(values(results, "exact", policy=str(system))) == turn - 1, "refused turns have no answer to compare"
    assert f"{13 - turn} of 12" in results.table()
    assert f"refused {13 - turn} requests beyond its context" in results.verdict().text()
    assert "refused" not in compare(["paged"], "chat", qwen3, turns=2, progress=False).table()


def test_what_a_context_limit_cut_is_in_the_rows_of_every_turn(qwen3: LoadedModel) -> None:
    prompts = values(run("full", "chat", qwen3, turns=8, progress=False), "prompt_tokens")
    system = System.parse(f"ollama:context={int(prompts[3]) + 1}")
    results = compare([system, "paged"], "chat", qwen3, turns=8, progress=False)
    cut = values(results, "cut_tokens", policy=str(system))
    assert cut[:4] == [0] * 4 and all(cut[4:]) and len(cut) == 8
    left = values(results, "prompt_tokens", policy=str(system))
    assert [a + b for a, b in zip(cut, left, strict=True)] == prompts
    assert values(results, "discarded_tokens", policy=str(system)) == [0] * 8
    assert values(results, "refused", policy=str(system)) == [0] * 8
    assert values(results, "cut_tokens", policy="paged") == []


def test_a_store_is_cold_and_gone_afterwards(qwen3: LoadedModel, tmp_path: Path) -> None:
    for _ in range(2):
        results = compare(["tiered"], "chat", qwen3, turns=2, folder=tmp_path / "run", progress=False)
        assert values(results, "cached_tokens")[0] == 0
    assert all(Path(folder).parent == tmp_path / "run" for folder in FakeDecoder.disk) and len(FakeDecoder.disk) == 2
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_in_the_policy_is_used_as_it_is(qwen3: LoadedModel, tmp_path: Path) -> None:
    policy = f"tiered:dir={tmp_path}"
    compare([policy], "chat", qwen3, turns=2, progress=False)
    results = compare([policy], "chat", qwen3, turns=2, progress=False)
    assert list(FakeDecoder.disk) == [str(tmp_path)]
    assert values(results, "cached_tokens")[0] > 0 and results.policies == [policy]


def test_conversations_at_once(qwen3: LoadedModel) -> None:
    results = compare(["paged"], "agent", qwen3, turns=3, n=4, concurrency=3, progress=False)
    assert {r["n"] for r in results.rows} == {3}
    assert len(values(results, "ttft_ms")) == 12
    assert {r["conversation"] for r in results.rows} == {f"agent-{i}" for i in range(4)}
    assert {r["n"] for r in run("full", "chat", qwen3, turns=1, concurrency=9, progress=False).rows} == {1}


def test_an_error_in_one_conversation_ends_the_run(qwen3: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeDecoder):
        def generate(self, prompt: Sequence[int], **options: Any) -> Any:
            if options.get("tags", {}).get("conversation") == "agent-1":
                raise PolicyError("no room")
            return super().generate(prompt, **options)

    monkeypatch.setattr(conversations, "Decoder", Broken)
    with pytest.raises(PolicyError, match="no room"):
        run("full", "agent", qwen3, turns=2, n=3, concurrency=2, progress=False)


def test_a_run_is_a_picklable_value(qwen3: LoadedModel) -> None:
    cell = Run("paged|quantized:bits=4", "chat", model=str(qwen3.path), turns=2, seed=1)
    again = pickle.loads(pickle.dumps(cell))
    assert again == cell
    assert "<code>paged|quantized:bits=4</code>" in cell._repr_html_() and "turns" in cell._repr_html_()
    assert again.execute(progress=False).policies == ["paged|quantized:bits=4"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"policies": []}, "no policies"),
        ({"policies": ["pagged"]}, "did you mean"),
        ({"policies": ["full"], "workload": "agents"}, "choose one of agent, chat, "),
        ({"policies": ["full"], "concurrency": 0}, "concurrency is 0"),
        ({"policies": ["tiered"], "turns": 1, "restart": True}, "two turns or more"),
    ],
)
def test_impossible_comparisons_are_refused(qwen3: LoadedModel, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compare(**{"workload": "chat", "model": qwen3, "progress": False, **arguments})


def test_compare_command_writes_a_run(
    qwen3: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results = compare_command(["full", "paged"], "chat", model=str(qwen3.path), turns=2, n=2, concurrency=1)
    assert {row["n"] for row in results.rows} == {1} and len({row["conversation"] for row in results.rows}) == 2
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("compare-")
    assert {path.name for path in folder.iterdir()} == {"rows.ndjson", "provenance.json", "record.zarr", "report.html"}
    assert Results.load(folder).rows == results.rows
    shown = capsys.readouterr().out
    assert "TTFT turn 1" in shown and str(folder.relative_to(tmp_path) / "report.html") in shown


def test_demo_runs_five_policies_and_says_what_next(
    qwen3: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = demo.demo(tmp_path / "run", model=qwen3, turns=4, progress=False)
    assert results.policies == [str(Policy.parse(policy)) for policy in demo.POLICIES]
    shown = capsys.readouterr().out
    assert "after restart" in shown and shown.count("kvlab ") == 3
    assert values(results, "ttft_ms", policy="tiered", phase="restart")
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("vegaEmbed(") >= 1 and "<script src" not in report
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "provenance.json", "record.zarr", "report.html", "rows.ndjson",
    ]  # fmt: skip


def test_commands_that_the_demo_suggests_can_be_run() -> None:
    for _, command in demo.NEXT:
        name, *arguments = shlex.split(command)[1:]
        assert name in cli.commands
        if arguments:
            options = dict(zip(arguments[::2], arguments[1::2], strict=True))
            assert [Policy.parse(spec) for spec in split_policies([options["--policies"]])]
            assert load_workload(options["--workload"], n=int(options.get("--n", 1))).requests()
