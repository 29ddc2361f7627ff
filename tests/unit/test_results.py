"""Results: rows by the schema, the run folder, the tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zarr

from kvlab.charts.colors import BLUE
from kvlab.errors import RunError
from kvlab.recording import events
from kvlab.recording.recorder import Recorder
from kvlab.results import Results, Row, merged, new_run_folder, row
from kvlab.results.rows import grade_row
from kvlab.results.summary import bytes_text, sparkline, text_table


def some_rows(policy: str, ttft: float, turns: int = 3, phase: str = "warm") -> list[Row]:
    rows = []
    for turn in range(1, turns + 1):
        where = {"turn": turn, "phase": "cold" if turn == 1 else phase, "n": 1, "model": "tiny", "seed": 0}
        rows.append(row(policy, "agent", "ttft_ms", ttft * turn, **where))
        rows.append(row(policy, "agent", "prompt_tokens", 100 * turn, **where))
        rows.append(row(policy, "agent", "cached_tokens", 0 if phase == "cold" else 100 * (turn - 1), **where))
        rows.append(row(policy, "agent", "accuracy", turn % 2, kind="call", **where))
    return rows


def some_results() -> Results:
    recorder = Recorder({"commit": "abc"})
    recorder.emit(events.Submitted(0, 1.0, 90, 8, {"turn": 1}))
    recorder.emit(events.Token(0, 1.3, 8, 1, 4096))
    rows = some_rows("full", 10, phase="cold") + some_rows("tiered:ram=2GB,ssd=20GB", 2)
    return Results(rows, {"commit": "abc", "model": "tiny"}, {"tiered:ram=2GB,ssd=20GB": recorder, "full": Recorder()})


def test_a_row_has_the_contract_s_keys_and_leaves_out_what_does_not_apply() -> None:
    made = row("tiered", "agent", "ttft_ms", 41.2, turn=15, phase="warm", budget=None)
    assert made == {
        "policy": "tiered", "workload": "agent", "metric": "ttft_ms", "value": 41.2, "unit": "ms",
        "turn": 15, "phase": "warm",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "value", "where", "says"),
    [
        ("ttft", 1, {}, "the metrics are ttft_ms"),
        ("ttft_ms", float("nan"), {}, "nan"),
        ("ttft_ms", 1, {"phase": "hot"}, "the phases are cold, warm, restart"),
        ("ttft_ms", 1, {"colour": "red"}, "no column 'colour'"),
    ],
)
def test_wrong_rows_are_refused(metric: str, value: float, where: dict[str, str], says: str) -> None:
    with pytest.raises(RunError, match=says):
        row("full", "agent", metric, value, **where)


def test_frame_and_document_hold_the_same_rows() -> None:
    results = some_results()
    document = json.loads(json.dumps(results.document("compare"), allow_nan=False))
    assert document["command"] == "compare" and document["provenance"]["commit"] == "abc"
    assert document["rows"] == results.rows
    assert results.frame().height == len(results.rows)
    assert results.frame()["seed"].to_list() == [0] * len(results.rows)
    assert results.policies == ["full", "tiered:ram=2GB,ssd=20GB"]


def test_save_and_load(tmp_path: Path) -> None:
    results = some_results()
    folder = results.save(tmp_path / "runs" / "one")
    again = Results.load(folder)
    assert again.rows == results.rows and again.provenance == results.provenance
    assert again.frame().equals(results.frame())
    assert again.events("token")["policy"].to_list() == ["tiered:ram=2GB,ssd=20GB"]
    assert again.events("token").equals(results.events("token"))
    root = zarr.open_group(folder / "record.zarr", mode="r")
    values = root["rows/value"]
    assert isinstance(values, zarr.Array)
    assert list(values[:]) == results.frame()["value"].to_list()  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["rows.ndjson", "provenance.json", "record.zarr"])
def test_a_run_folder_without_a_part_says_so(tmp_path: Path, file: str) -> None:
    folder = some_results().save(tmp_path)
    (folder / file).rename(folder / "away")
    with pytest.raises(RunError, match=file):
        Results.load(folder)


def test_a_broken_line_of_rows(tmp_path: Path) -> None:
    folder = some_results().save(tmp_path)
    (folder / "rows.ndjson").write_text('{"policy": \n')
    with pytest.raises(RunError, match="cannot be read"):
        Results.load(folder)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="choose another"):
        some_results().save(tmp_path / "file" / "run")


def test_new_run_folders_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "now")
    first = new_run_folder(None, "demo")
    first.mkdir(parents=True)
    assert [str(first), str(new_run_folder(None, "demo"))] == ["runs/demo-now", "runs/demo-now-2"]
    assert new_run_folder(first, "demo") == first


def test_summary_takes_turns_and_restart_apart() -> None:
    rows = some_rows("full", 10, phase="cold") + some_rows("tiered", 2)
    rows += [row("tiered", "agent", "ttft_ms", 5, turn=2, phase="restart"), row("full", "agent", "exact", 1, turn=1)]
    rows = [r for r in rows if not (r["policy"] == "tiered" and r["turn"] == 2 and r.get("phase") == "warm")]
    full, tiered = Results(rows, {}).summary().iter_rows(named=True)
    assert (full["ttft_first_ms"], full["ttft_second_ms"], full["ttft_last_ms"]) == (10, 20, 30)
    assert (tiered["ttft_first_ms"], tiered["ttft_second_ms"], tiered["ttft_restart_ms"]) == (2, None, 5)
    assert (full["cached_tokens"], tiered["cached_tokens"], full["prompt_tokens"]) == (0, 200, 300)
    assert full["accuracy"] == pytest.approx(2 / 3) and (full["exact"], tiered["exact"]) == (1, None)


def test_text_table_shows_what_there_is() -> None:
    table = text_table(some_results().summary())
    head, _, full, tiered = table.splitlines()
    assert head.split() == ["policy", "TTFT", "turn", "1", "turn", "2", "turn", "3", "cached", "tokens", "accuracy"]
    assert full.split()[-4:] == ["0", "of", "300", "0.67"] and "200 of 300" in tiered


def test_every_grade_but_the_one_that_is_the_accuracy_has_a_column() -> None:
    rows = []
    for policy, short in (("full", 1.0), ("knorm", 0.25)):
        for turn in (1, 2):
            where = {"turn": turn, "conversation": "c"}
            rows.append(row(policy, "own", "accuracy", 0.5, **where))
            rows.append(grade_row(policy, "own", "right", 0.5, **where))
            rows.append(grade_row(policy, "own", "short", short, **where))
    results = Results(rows, {})
    head, _, first, second = results.table().splitlines()
    assert head.split() == ["policy", "accuracy", "short"]
    assert (first.split()[1:], second.split()[1:]) == (["0.50", "1.00"], ["0.50", "0.25"])
    assert ">short</th>" in results._repr_html_() and ">right</th>" not in results._repr_html_()


def test_html_has_a_line_and_a_curve_a_policy() -> None:
    html = some_results()._repr_html_()
    assert html.count("<tr>") == 3 and html.count("<polyline") == 2 and "tiered:ram=2GB,ssd=20GB" in html
    assert "commit abc" in html and "<script" not in html


def test_html_escapes_what_users_write() -> None:
    html = Results([row("full", "transcript:<b>", "ttft_ms", 1, turn=1)], {"model": "<i>"})._repr_html_()
    assert "<b>" not in html and "<i>" not in html


def test_sparkline_needs_two_points() -> None:
    assert sparkline([(1, 2.0)], BLUE, 2.0) == ""
    assert sparkline([(1, 2.0), (2, 1.0)], BLUE, 2.0).count("<circle") == 1


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_912_000, "3.9 MB"), (240_000_000, "240 MB")]
)
def test_bytes_text(value: float, text: str) -> None:
    assert bytes_text(value) == text


def test_merged_keeps_every_row_and_recorder() -> None:
    one, two = some_results(), Results(some_rows("paged", 3), {"commit": "def"}, {"paged": Recorder()})
    both = merged([one, two])
    assert both.rows == one.rows + two.rows and set(both.recorders) == {*one.recorders, "paged"}
    assert both.provenance == one.provenance
    with pytest.raises(RunError):
        merged([])
