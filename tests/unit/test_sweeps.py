"""Experiment files, cells and the row store, over a fake decoder."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kvlab
from kvlab.cli.main import main
from kvlab.errors import KvlabError, RunError
from kvlab.experiments import conversations, runner
from kvlab.experiments import sweep as sweeps
from kvlab.experiments.cell import Cell, CellResult, execute
from kvlab.experiments.config import Experiment, read_experiment
from kvlab.experiments.event_tables import position_runs, positions
from kvlab.experiments.result_store import RowStore
from kvlab.experiments.run import Run
from kvlab.experiments.sweep import sweep
from kvlab.models import LoadedModel
from kvlab.policies import Policy
from kvlab.results import Results
from kvlab.results.promote import serve_line
from kvlab.results.rows import TOGETHER
from tests.fake_decoder import FakeDecoder
from tests.unit.test_experiments import in_this_process

FILE = """
title = "a title"
workload = "chat"
turns = 2
policies = ["full", "quantized:bits={bits}", "paged"]
seeds = [3, 4]
repeats = 2
[grid]
bits = [8, 4]
concurrency = [1, 2]
"""


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDecoder.disk = {}
    monkeypatch.setattr(conversations, "Decoder", FakeDecoder)
    monkeypatch.setattr(runner, "serve_in_new_process", in_this_process)


def written(folder: Path, text: str = FILE) -> Path:
    path = folder / "some.toml"
    path.write_text(text)
    return path


def small(model: LoadedModel, **changes: Any) -> Experiment:
    values = {"workload": "chat", "turns": 2, "model": str(model.path), **changes}
    return Experiment("small", tuple(values.pop("policies", ("full", "paged"))), **values)


def test_a_file_becomes_every_combination_once(tmp_path: Path) -> None:
    cells = read_experiment(written(tmp_path)).cells()
    # full and paged do not vary with bits: (1 + 2 + 1) policies, two concurrencies, two seeds, two repeats.
    assert len(cells) == len(set(cells)) == len({cell.id for cell in cells}) == 32
    assert {cell.policy for cell in cells} == {"full", "quantized", "quantized:bits=4", "paged"}
    assert {(c.run.concurrency, c.run.n, c.run.turns, c.run.workload) for c in cells} == {
        (1, 1, 2, "chat"), (2, 2, 2, "chat"),
    }  # fmt: skip
    assert [cell.repeat for cell in cells] == [0] * 16 + [1] * 16, "repeats go round all cells"


def test_a_cell_s_id_is_its_content_in_every_process(tmp_path: Path) -> None:
    cell = Cell(Run("paged|quantized:bits=4", "retrieval", seed=2, tokens=300), repeat=1)
    again = pickle.loads(pickle.dumps(cell))
    assert again == cell and again.id == cell.id
    code = (
        "from kvlab.experiments.cell import Cell; from kvlab.experiments.run import Run;"
        "print(Cell(Run('paged|quantized:bits=4', 'retrieval', seed=2, tokens=300), repeat=1).id)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(kvlab.__file__).parents[1])},
    )  # fmt: skip
    assert other.stdout.strip() == cell.id, other.stderr
    assert Cell(cell.run, repeat=2).id != cell.id


def test_one_policy_in_two_spellings_is_one_cell(qwen3: LoadedModel) -> None:
    assert len(small(qwen3, policies=("quantized", "quantized:bits=8")).cells()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("policies = [", "is not TOML"),
        ("turns = 2", "no policies"),
        ('policies = ["full"]\nturn = 2', "did you mean 'turns'"),
        ('policies = ["ful"]', "unknown policy 'ful'"),
        ('policies = "full"', "write a list in brackets"),
        ("policies = []", "policies is an empty list"),
        ("policies = [1]", "policies is 1; write text"),
        ('policies = ["full"]\nworkload = "agents"', "choose one of agent"),
        ('policies = ["full"]\nturns = "2"', "turns is '2'; write a whole number"),
        ('policies = ["full"]\nturns = true', "turns is True; write a whole number"),
        ('policies = ["full"]\ndtype = "int4"', "no dtype 'int4'; write one of float32, float16, bfloat16"),
        ('policies = ["full"]\nrepeats = 0', "repeats is 0; write 1 or more"),
        ('policies = ["full"]\nseeds = []', "seeds is an empty list"),
        ('policies = ["full"]\nevents = ["spiled"]', "no events of kind 'spiled'"),
        ('policies = ["full"]\ntokens = 300', "workloads only, not to 'agent'"),
        ('policies = ["full"]\n[grid]', "the grid is empty"),
        ('policies = ["full"]\ngrid = 3', "grid is no table"),
        ('policies = ["full"]\n[grid]\nturns = []', "grid.turns is []"),
        ('policies = ["full"]\n[grid]\nturns = ["a"]', "turns is 'a'; write a whole number"),
        ('policies = ["full"]\n[grid]\nseeds = [1]', "cannot be in the grid"),
        ('policies = ["full"]\nturns = 3\n[grid]\nturns = [1]', "given twice"),
        ('policies = ["full"]\n[grid]\nbudget = [0.5]', "changes nothing"),
        ('policies = ["snapkv:budget={budget}"]', "names {budget}"),
        ('policies = ["snapkv:budget={budget"]', "cannot be read"),
        ('policies = ["snapkv:budget={b}"]\n[grid]\nb = [-1]', "budget"),
        ('policies = ["full"]\n[grid]\nx = [[1]]', "write text or numbers"),
    ],
)
def test_wrong_files_give_one_line_and_status_2(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(written(tmp_path, text)), "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr()
    assert says in shown.err and "some.toml" in shown.err
    assert shown.err.count("\n") == 1 and shown.out == "" and not (tmp_path / "run").exists()


def test_a_missing_file_gives_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.toml")]) == 2
    assert "no experiment file" in capsys.readouterr().err
    assert main(["run", str(tmp_path)]) == 2


def test_a_cell_gives_the_rows_of_compare(qwen3: LoadedModel) -> None:
    done = execute(Cell(Run("paged", "chat", str(qwen3.path), turns=3, seed=1), repeat=2))
    assert {row["metric"] for row in done.rows} >= {"ttft_ms", "cached_tokens", "exact", "kv_bytes_live"}
    assert {row["repeat"] for row in done.rows} == {2} and done.provenance["seed"] == 1
    assert [row["value"] for row in done.rows if row["metric"] == "exact"] == [1, 1, 1]
    assert json.loads(json.dumps(done.rows)) == done.rows


def test_a_dtype_is_of_every_cell_and_the_command_replaces_that_of_the_file(
    qwen3: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'policies = ["full"]\nworkload = "chat"\nturns = 1\nmodel = "{qwen3.path}"\n'
    plain, sixteen = (read_experiment(written(tmp_path, text + more)).cells() for more in ("", 'dtype = "bfloat16"\n'))
    assert "dtype" not in plain[0].content() and sixteen[0].content()["dtype"] == "bfloat16"
    assert execute(sixteen[0]).provenance["dtype"] == "bfloat16" != execute(plain[0]).provenance["dtype"]
    arguments = ["run", str(tmp_path / "some.toml"), "--out", str(tmp_path / "out"), "--dtype", "float16", "--json"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["dtype"] == "float16"


def test_only_lossless_policies_and_restarts_are_compared(qwen3: LoadedModel) -> None:
    def metrics(policy: str, **changes: Any) -> set[str]:
        exact = changes.pop("exact", True)
        done = execute(Cell(Run(policy, "chat", str(qwen3.path), turns=4, **changes), exact=exact))
        return {row["metric"] for row in done.rows}

    assert "exact" not in metrics("quantized") and "exact" not in metrics("paged", exact=False)
    assert "exact" in metrics("full")
    assert "ratio" in metrics("tiered", restart=True) and "ratio" not in metrics("tiered")


def test_rows_of_all_sequences_together(qwen3: LoadedModel) -> None:
    done = execute(Cell(Run("full", "chat", str(qwen3.path), turns=1, n=3, concurrency=3)))
    together = {row["metric"]: row for row in done.rows if row.get("kind") == TOGETHER}
    assert set(together) == {"tokens_per_s", "kv_bytes_live"} and together["tokens_per_s"]["n"] == 3
    single = [row["value"] for row in done.rows if row["metric"] == "kv_bytes_live" and "turn" in row]
    assert max(single) <= together["kv_bytes_live"]["value"] <= sum(single)


def test_errors_name_the_policy(qwen3: LoadedModel) -> None:
    with pytest.raises(RunError, match="tiered on chat: a restart needs"):
        execute(Cell(Run("tiered", "chat", str(qwen3.path), turns=1, restart=True)))


def test_events_are_kept_when_asked_for(qwen3: LoadedModel) -> None:
    cell = Cell(Run("rotating:window=32", "chat", str(qwen3.path), turns=2), events=("evicted", "submitted"))
    done = execute(cell)
    assert done.events["submitted"]["turn"] == [1, 2] and done.events["submitted"]["t"][0] == 0
    runs = done.events["evicted"]
    assert set(runs) == {"policy", "request", "layer", "head", "step", "start", "stop"}
    assert runs["start"][0] == 4 and all(start < stop for start, stop in zip(runs["start"], runs["stop"], strict=True))


def test_runs_of_positions_can_be_taken_apart_again() -> None:
    import polars as pl

    rows = [("p", 0, 0, 0, 0, at) for at in (4, 5, 6, 9)] + [("p", 0, 0, 1, 0, 7), ("p", 0, 0, 0, 1, 8)]
    frame = pl.DataFrame(rows, schema=["policy", "request", "layer", "head", "step", "position"], orient="row")
    runs = position_runs(frame)
    assert runs.height == 4
    back = positions(runs).select(frame.columns).sort(frame.columns)
    assert back.equals(frame.sort(frame.columns))


def test_a_sweep_does_what_is_missing_only(qwen3: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = small(qwen3, repeats=2)
    asked: list[Cell] = []

    def counting(cell: Cell, folder: Path | None = None) -> CellResult:
        asked.append(cell)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return execute(cell, folder)

    monkeypatch.setattr(sweeps, "execute", counting)
    with pytest.raises(KeyboardInterrupt):
        sweep(experiment, tmp_path / "run", progress=False)
    assert len(list((tmp_path / "run" / "cells").iterdir())) == 2
    results = sweep(experiment, tmp_path / "run", progress=False)
    assert asked == [*experiment.cells()[:3], *experiment.cells()[2:]]
    assert results.policies == ["full", "paged"] and {row["repeat"] for row in results.rows} == {0, 1}
    again = sweep(experiment, tmp_path / "run", progress=False)
    assert len(asked) == 5 and again.rows == results.rows == Results.load(tmp_path / "run").rows
    assert {path.suffix for path in (tmp_path / "run" / ".work").iterdir()} == {".lock"}


def test_a_larger_grid_keeps_what_is_done(qwen3: LoadedModel, tmp_path: Path) -> None:
    sweep(small(qwen3), tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    sweep(small(qwen3, policies=("full", "paged", "quantized")), tmp_path, progress=False)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(after) == len(before) + 1 and before.items() <= after.items()


@pytest.mark.parametrize("damage", ["", "{", "null", '{"format": 1}', "other"])
def test_a_damaged_or_foreign_cell_is_done_again(damage: str, qwen3: LoadedModel, tmp_path: Path) -> None:
    store, (one, other) = RowStore(tmp_path), small(qwen3).cells()
    store.write(execute(one))
    path = store.cells / f"{one.id}.json"
    if damage == "other":
        path.write_text(path.read_text().replace('"policy":"full"', '"policy":"paged"', 1))
    else:
        path.write_text(damage)
    assert store.read(one) is None and store.read(other) is None
    sweep(small(qwen3), tmp_path, progress=False)
    assert RowStore(tmp_path).read(one) is not None


def test_a_cell_is_claimed_by_one_process_and_leftovers_go(qwen3: LoadedModel, tmp_path: Path) -> None:
    store, (one, other) = RowStore(tmp_path), small(qwen3).cells()
    (store.work / one.id).mkdir()
    (store.work / one.id / "left").touch()
    (store.work / f"{one.id}.x.tmp").touch()
    with store.claim(one) as work, store.claim(one) as second, store.claim(other) as third:
        assert work is not None and list(work.iterdir()) == []
        assert second is None and third is not None
        assert not list(store.work.glob("*.tmp"))
    with store.claim(one) as again:
        assert again is not None


def test_rows_of_several_commits_are_told(qwen3: LoadedModel, tmp_path: Path) -> None:
    store, (one, other) = RowStore(tmp_path), small(qwen3).cells()
    for cell, commit in ((one, "abc"), (other, "def")):
        done = execute(cell)
        store.write(CellResult(cell, done.rows, {**done.provenance, "commit": commit}, {}))
    assert store.results([one, other]).provenance["commits"] == ["abc", "def"]
    with pytest.raises(RunError, match="no finished cell"):
        store.results([])


def test_run_prints_a_table_and_what_promotes_each_policy(
    qwen3: LoadedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, FILE + f'model = ["{qwen3.path}"]\n')
    assert main(["run", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "a title" in shown and "quantized:bits=4  concurrency=2" in shown.replace(f" model={qwen3.name}", "")
    assert f"kvlab serve --policy 'quantized:bits=4' --model {qwen3.path}" in shown
    assert "32 cells finished. Rows: runs/some" in shown
    assert main(["run", str(path), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["command"] == "run" and len(document["rows"]) > 32 and "32 of them before this run" in err
    assert document["provenance"]["cells"] == 32


def test_every_policy_has_a_line_that_serves_it(qwen3: LoadedModel) -> None:
    assert serve_line("tiered:ram=2GB,ssd=20GB") == "kvlab serve --policy 'tiered:ram=2GB,ssd=20GB'"
    assert serve_line("full", {"model_argument": "org/name"}) == "kvlab serve --policy 'full' --model org/name"
    assert "'\"'\"'" in serve_line("tiered:dir=it's")
    results = Run("paged|quantized:bits=4", "chat", qwen3, turns=1).execute(progress=False)
    page = results._repr_html_()
    assert "kvlab serve --policy &#x27;paged|quantized:bits=4&#x27;" in page and str(qwen3.path) in page
    Policy.parse("paged|quantized:bits=4")


def test_unwritable_folders_are_named(qwen3: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KvlabError, match="choose another"):
        sweep(small(qwen3), tmp_path / "file" / "run", progress=False)
