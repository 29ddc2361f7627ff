"""Repeats: all policies in turns, rows that carry their repeat, tables of medians and ranges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvlab.cli.main import main
from kvlab.errors import RunError
from kvlab.experiments import conversations, runner
from kvlab.experiments.machine_load import LoadMeter
from kvlab.experiments.run import compare, run
from kvlab.experiments.runner import Runner
from kvlab.models import LoadedModel
from kvlab.results import Results, row
from kvlab.results.load import OTHER_LOAD
from kvlab.results.summary import medians, summarize, text_table
from tests.fake_decoder import FakeDecoder
from tests.unit.test_experiments import in_this_process


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The policies in the order in which they were served, over a decoder without a model."""
    FakeDecoder.disk = {}
    monkeypatch.setattr(conversations, "Decoder", FakeDecoder)
    monkeypatch.setattr(runner, "serve_in_new_process", in_this_process)
    order: list[str] = []
    serve: Callable[..., Any] = Runner.serve

    def noted(self: Runner, policy: Any, **options: Any) -> Any:
        order.append(str(policy))
        return serve(self, policy, **options)

    monkeypatch.setattr(Runner, "serve", noted)
    return order


def repeats_of(results: Results, policy: str, metric: str = "ttft_ms") -> list[int]:
    return [r["repeat"] for r in results.rows if r["policy"] == policy and r["metric"] == metric]


def test_repeats_go_round_all_policies(qwen3: LoadedModel, served: list[str]) -> None:
    results = compare(["full", "paged", "knorm"], "chat", qwen3, turns=2, repeats=3, progress=False)
    assert served == ["full", "paged", "knorm"] * 3
    for policy in results.policies:
        assert repeats_of(results, policy) == repeats_of(results, policy, "text") == [0, 0, 1, 1, 2, 2]


def test_the_uncached_run_is_repeated_only_where_its_times_are_shown(qwen3: LoadedModel, served: list[str]) -> None:
    compare(["paged"], "chat", qwen3, turns=2, repeats=3, progress=False)
    assert served == ["full", "paged", "paged", "paged"]
    served.clear()
    results = compare(["tiered"], "chat", qwen3, turns=2, restart=True, repeats=2, progress=False)
    assert served == ["full", "tiered"] * 2
    assert repeats_of(results, "tiered", "ratio") == repeats_of(results, "full") == [0, 1]


def test_one_run_repeats_too(qwen3: LoadedModel, served: list[str]) -> None:
    assert set(repeats_of(run("paged", "chat", qwen3, turns=1, repeats=2, progress=False), "paged")) == {0, 1}
    assert set(repeats_of(run("paged", "chat", qwen3, turns=1, progress=False), "paged")) == {0}


def test_each_repeat_has_a_cold_store_and_events_are_of_the_first(qwen3: LoadedModel) -> None:
    results = compare(["paged"], "chat", qwen3, turns=2, repeats=2, progress=False)
    first = [r["value"] for r in results.rows if r["metric"] == "cached_tokens" and r["turn"] == 1]
    assert first == [0, 0]
    assert results.recorders["paged"].frame("submitted").height == 2


@pytest.mark.parametrize("repeats", [0, -1, True, 1.5, "2"])
def test_impossible_repeats_are_refused(repeats: Any, qwen3: LoadedModel) -> None:
    for call in (
        lambda: compare(["full"], "chat", qwen3, repeats=repeats),
        lambda: run("full", "chat", qwen3, repeats=repeats),
    ):
        with pytest.raises(RunError, match="repeats is .*; write a whole number, 1 or more"):
            call()


def test_the_command_line_repeats_and_keeps_its_own_line(
    qwen3: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["compare", "--policies", "full,paged", "--workload", "chat", "--turns", "2", "--model", str(qwen3.path)]
    assert main([*line, "--repeats", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert {r["repeat"] for r in document["rows"] if "repeat" in r} == {0, 1}
    assert document["provenance"]["command"].startswith("kvlab compare --policies full,paged --workload chat")
    assert "the median of 2 measurements" in err and "Of 2 policies" in err
    said = [r for r in document["rows"] if r["metric"] == "text"]
    assert len(said) == 8 and all(r["question"] for r in said)


def test_an_experiment_file_is_repeated_as_the_command_line_says(
    qwen3: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "few.toml"
    file.write_text(
        f'policies = ["full", "paged"]\nworkload = "chat"\nturns = 2\nrepeats = 3\nmodel = "{qwen3.path}"\n'
    )
    assert main(["run", str(file), "--out", str(tmp_path / "run"), "--repeats", "2"]) == 0
    results = Results.load(tmp_path / "run")
    assert {r["repeat"] for r in results.rows} == {0, 1} and results.answers().height == 8
    report = (tmp_path / "run" / "report.html").read_text()
    assert "What it said" in report and f"kvlab run {file} --out" in report
    assert "Charts and answers" in capsys.readouterr().out


# -- medians and ranges ------------------------------------------------------------------------------------------------


def timed(policy: str, *times: float, **where: Any) -> list[dict[str, Any]]:
    return [row(policy, "agent", "ttft_ms", took, turn=1, repeat=i, seed=0, **where) for i, took in enumerate(times)]


def test_a_table_shows_the_median_and_the_range_of_the_repeats() -> None:
    rows = [*timed("full", 100, 900, 110), *timed("paged", 20, 22, 21)]
    table = text_table(Results(rows, {}).summary())
    assert "110 ms (100–900)" in table and "21.0 ms (20.0–22.0)" in table
    assert table.splitlines()[-1] == "Times: the median of 3 measurements, in brackets the least and the greatest."
    html = Results(rows, {})._repr_html_()
    assert "110 ms" in html and "100–900" in html and "the median of 3 measurements" in html


def test_one_measurement_has_no_range() -> None:
    summary = Results(timed("full", 100), {}).summary()
    assert summary["ttft_first_ms_low"].to_list() == [None]
    assert "(" not in text_table(summary) and "median" not in text_table(summary)


def test_conversations_of_one_repeat_are_one_sample_and_seeds_are_several() -> None:
    several = [r for i in range(4) for r in timed("full", 10 * i + 5, conversation=f"c{i}")]
    (one,) = summarize(Results(several, {}).frame()).iter_rows(named=True)
    assert (one["ttft_first_ms"], one["ttft_first_ms_low"], one["samples"]) == (20, None, 1)
    seeds = [row("full", "agent", "ttft_ms", 10 * seed, turn=1, seed=seed, repeat=0) for seed in range(3)]
    (one,) = summarize(Results(seeds, {}).frame()).iter_rows(named=True)
    assert (one["ttft_first_ms"], one["ttft_first_ms_low"], one["ttft_first_ms_high"]) == (10, 0, 20)


def test_the_median_lies_in_its_range_by_turn_too() -> None:
    rows = [r for turn in (1, 2) for r in timed("full", 3, 9, 5, 7)] + timed("paged", 2)
    for policy, turn, value, low, high in medians(Results(rows, {}).frame(), "turn").iter_rows():
        assert low is None or low <= value <= high, (policy, turn)


# -- other programs ----------------------------------------------------------------------------------------------------


def test_what_other_programs_took_is_kept_by_policy_and_repeat(
    qwen3: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.5, None, 0.25, 0.0])
    monkeypatch.setattr(LoadMeter, "others", lambda self: next(shares))
    results = compare(["full", "paged"], "chat", qwen3, turns=1, repeats=2, progress=False)
    assert results.provenance[OTHER_LOAD] == {"full": [0.5, 0.25], "paged": [0.0]}
    again = Results.load(results.save(tmp_path))
    assert again.verdict().notes == results.verdict().notes
    assert any("busy in 2 of 3 runs" in note for note in again.verdict().notes)
