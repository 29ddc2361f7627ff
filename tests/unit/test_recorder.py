"""The recorder: events from many threads, frames, the Zarr record and its accidents."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zarr

from kvlab.errors import RunError
from kvlab.recording import events
from kvlab.recording.recorder import Recorder


def recorded() -> Recorder:
    recorder = Recorder({"commit": "abc", "seed": 3})
    recorder.emit(events.Submitted(0, 1.0, 90, 8, {"policy": "paged", "turn": 1, "phase": None}))
    recorder.emit(events.Submitted(1, 1.5, 95, 8, {"policy": "paged", "turn": 2, "note": "größer"}))
    recorder.emit(events.Matched(0, 1.1, 64, {"ram": 32, "ssd": 32}, "diverged_at=64", 0.002))
    recorder.emit(events.Matched(1, 1.6, 10, {"remote": 10}, "", 0.002))
    recorder.emit(events.FirstToken(0, 1.2, 7))
    recorder.emit(events.Token(0, 1.3, 8, 1, 4096))
    positions = np.array([[4, 5, -1], [9, -1, -1]], dtype=np.int32)
    recorder.emit(events.Evicted(0, 1.3, 2, 1, positions, 60))
    recorder.emit(events.Spilled(-1, 1.4, 3, 300))
    recorder.emit(events.Finished(0, 1.5, "stop", 2, 4096))
    return recorder


def test_evictions_become_one_row_a_position_and_head() -> None:
    frame = recorded().frame("evicted")
    assert frame.select("request", "layer", "head", "position", "step", "kept").rows() == [
        (0, 2, 0, 4, 1, 60),
        (0, 2, 0, 5, 1, 60),
        (0, 2, 1, 9, 1, 60),
    ]


def test_tags_and_tiers_are_columns() -> None:
    recorder = recorded()
    assert recorder.frame(events.Submitted)["turn"].to_list() == [1, 2]
    matched = recorder.frame("Matched")
    assert matched.select("ram_tokens", "ssd_tokens", "remote_tokens").rows() == [(32, 32, 0), (0, 0, 10)]
    assert recorder.tagged("token").select("policy", "turn", "kv_bytes").rows() == [("paged", 1, 4096)]


def test_a_kind_without_events_has_its_columns() -> None:
    for kind in events.KINDS:
        frame = Recorder().frame(kind)
        assert frame.is_empty() and {"request", "t"} <= set(frame.columns)
    assert Recorder().tagged("evicted").is_empty()
    assert Recorder().frames() == {}


def test_unknown_kind_names_those_that_exist() -> None:
    with pytest.raises(RunError, match=r"'evictions'.*first_token, token, evicted"):
        Recorder().frame("evictions")


def test_tags_of_mixed_types_and_clashing_names() -> None:
    recorder = Recorder()
    recorder.emit(events.Submitted(0, 0.0, 1, 1, {"turn": 1, "request": "mine", "who": {"a": 1}}))
    recorder.emit(events.Submitted(1, 0.0, 1, 1, {"turn": "last"}))
    frame = recorder.frame("submitted")
    assert frame["turn"].to_list() == ["1", "last"]
    assert frame["request"].to_list() == [0, 1] and frame["tag_request"].to_list() == ["mine", None]


def test_emit_from_many_threads_loses_nothing() -> None:
    recorder = Recorder()

    def work(request: int) -> None:
        for step in range(500):
            recorder.emit(events.Token(request, 0.0, step, step, 0))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    frame = recorder.frame("token")
    assert frame.height == 4000
    assert frame.group_by("request").agg(pl.col("step").is_sorted().all())["step"].all()


def test_record_round_trip(tmp_path: Path) -> None:
    recorder = recorded()
    again = Recorder.load(recorder.save(tmp_path / "record.zarr"))
    assert again.provenance == {"commit": "abc", "seed": 3}
    assert set(again.frames()) == set(recorder.frames())
    for kind, frame in recorder.frames().items():
        assert again.frame(kind).equals(frame), kind
    assert again.tagged("token").equals(recorder.tagged("token"))


def test_record_is_plain_zarr_v3(tmp_path: Path) -> None:
    group = zarr.open_group(recorded().save(tmp_path / "record.zarr"), mode="r")
    assert group.metadata.zarr_format == 3
    column = group["token/kv_bytes"]
    assert isinstance(column, zarr.Array)
    assert list(np.asarray(column[:])) == [4096] and column.dtype == np.int64
    assert "crc32c" in json.dumps(column.metadata.to_dict(), default=str)


def test_saving_again_replaces_the_record_and_leaves_nothing_behind(tmp_path: Path) -> None:
    recorded().save(tmp_path / "record.zarr")
    Recorder({"second": True}).save(tmp_path / "record.zarr")
    assert Recorder.load(tmp_path / "record.zarr").provenance == {"second": True}
    assert [path.name for path in tmp_path.iterdir()] == ["record.zarr"]


def test_a_failed_save_keeps_the_record_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded().save(tmp_path / "record.zarr")
    monkeypatch.setattr("kvlab.recording.recorder.write_frame", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        recorded().save(tmp_path / "record.zarr")
    assert Recorder.load(tmp_path / "record.zarr").frame("token").height == 1
    assert [path.name for path in tmp_path.iterdir()] == ["record.zarr"]


def test_merge_renumbers_requests_and_moves_the_clock() -> None:
    ours, theirs = recorded(), recorded()
    theirs.epoch = ours.epoch + 10
    ours.merge(theirs)
    ours.merge(theirs)
    assert ours.frame("submitted")["request"].to_list() == [2, 3, 4, 5, 0, 1]
    assert ours.frame("spilled")["request"].to_list() == [-1, -1, -1]
    assert sorted(ours.frame("token")["t"]) == [1.3, 11.3, 11.3]


def one_line(error: pytest.ExceptionInfo[RunError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_record(tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        Recorder.load(tmp_path / "nothing.zarr")
    assert "no such record" in one_line(error)


@pytest.mark.parametrize("accident", ["flip", "cut", "delete chunk", "delete array", "foreign", "format", "json"])
def test_a_damaged_record_is_one_line(tmp_path: Path, accident: str) -> None:
    path = recorded().save(tmp_path / "record.zarr")
    chunk = next(
        file for file in (path / "token" / "kv_bytes").rglob("*") if file.is_file() and file.name != "zarr.json"
    )
    root = path / "zarr.json"
    if accident == "flip":
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 4
        chunk.write_bytes(data)
    elif accident == "cut":
        chunk.write_bytes(chunk.read_bytes()[:3])
    elif accident == "delete chunk":
        chunk.unlink()
    elif accident == "delete array":
        shutil.rmtree(path / "token" / "kv_bytes")
    elif accident == "foreign":
        root.write_text(root.read_text().replace("kvlab_record", "other"))
    elif accident == "format":
        root.write_text(root.read_text().replace('"kvlab_record": 1', '"kvlab_record": 99'))
    else:
        root.write_text("{")
    with pytest.raises(RunError) as error:
        Recorder.load(path)
    assert "damaged" in one_line(error) and str(path) in str(error.value)


def test_html_counts_the_rows() -> None:
    html = recorded()._repr_html_()
    assert "evicted</td><td>3<" in html and "submitted</td><td>2<" in html
