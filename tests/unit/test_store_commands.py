"""``kvlab store``: ls, verify, prune and clear."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kvlab.cli.store import app
from kvlab.errors import StoreError
from kvlab.store import Namespace, commands
from kvlab.store.ssd.folder import StoreFolder
from tests.store_kit import BLOCK, NS, fetch, opened, put, sound

OTHER = Namespace("model", "quantized:bits=4", "float32", BLOCK, "bob")
A, B = list(range(30)), list(range(100, 160))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with opened(tmp_path / "store") as store:
        fetch(store, A)
        put(store, A)
        store.put_checkpoint(NS, A[:20], {"s": np.ones(3)})
        store.flush()
        put(store, B)
        put(store, A, ns=OTHER)
    return tmp_path / "store"


def value(rows: list[dict[str, Any]], metric: str, **where: Any) -> Any:
    found = [row["value"] for row in rows if row["metric"] == metric and all(row.get(k) == v for k, v in where.items())]
    assert len(found) == 1, rows
    return found[0]


def test_ls_counts_blocks_and_bytes_by_namespace(folder: Path) -> None:
    rows = commands.ls(folder)
    assert all(row.keys() >= {"policy", "workload", "metric", "value", "unit"} for row in rows)
    assert value(rows, "blocks", tenant="bob") == 4 and value(rows, "blocks", tenant="") == 12
    assert value(rows, "tails", tenant="") == 2 and value(rows, "checkpoints", tenant="") == 1
    assert value(rows, "tokens", tenant="") == 90
    assert value(rows, "misses", reason="never_seen") == 1
    total = sum(row["value"] for row in rows if row["metric"] == "kv_bytes_ssd" and "tenant" in row)
    assert total == sum(path.stat().st_size for path in (folder / "blocks").rglob("*") if path.is_file())
    assert {row["tenant"] for row in commands.ls(folder, tenant="bob")} == {"bob"}


def test_verify_finds_what_repair_mends(folder: Path) -> None:
    assert value(commands.verify(folder), "corrupt") == 0
    files = sorted(path for path in (folder / "blocks").rglob("*") if path.is_file())
    files[0].write_bytes(b"x")
    files[1].unlink()
    (folder / "blocks" / "0").mkdir(exist_ok=True)
    (folder / "blocks" / "0" / "stray").write_bytes(b"stray")
    (folder / "blocks" / "0" / ("0" * 64)).write_bytes(b"stray")
    for _ in range(2):
        rows = commands.verify(folder)
        assert value(rows, "corrupt") == 2 and value(rows, "unindexed") == 1
        assert value(rows, "verified") == len(files) - 2
        assert {row["file"] for row in rows if "file" in row} == {str(f.relative_to(folder)) for f in files[:2]}
    rows = commands.verify(folder, repair=True)
    assert value(rows, "corrupt") == 0 and value(rows, "swept") == 3 and value(rows, "verified") == len(files) - 2
    assert (folder / "blocks" / "0" / "stray").read_bytes() == b"stray"
    with opened(folder) as store:
        sound(store)
        assert fetch(store, A).tokens + fetch(store, B).tokens + fetch(store, A, OTHER).tokens < 120
    assert value(commands.ls(folder), "quarantined") == 2


def test_prune_takes_leaves_and_the_oldest_first(folder: Path) -> None:
    size = value(commands.ls(folder), "bytes_written")
    rows = commands.prune(folder, keep=size * 2 // 3)
    assert value(rows, "kv_bytes_ssd") <= size * 2 // 3
    with opened(folder) as store:
        sound(store)
        match = fetch(store, A)
        assert match.tokens < 30 and match.miss == "evicted"
        assert fetch(store, A, OTHER).tokens == 30
    assert value(commands.prune(folder, unused=3600), "removed") == 0
    assert value(commands.prune(folder, unused=0, tenant="bob"), "removed") == 4
    assert value(commands.prune(folder, keep=0), "kv_bytes_ssd") == 0
    with pytest.raises(StoreError, match="nothing to prune by"):
        commands.prune(folder)


@pytest.mark.parametrize("ahead", [1.0, 3600.0, 1e9])
@pytest.mark.parametrize("how", [{"keep": 0}, {"unused": 0.0}, {"keep": 0, "unused": 0.0}])
def test_prune_removes_everything_also_after_the_clock_was_set_back(
    folder: Path, ahead: float, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses then lie in the future: they count as uses just now."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - ahead)
    assert value(commands.prune(folder, unused=60.0), "removed") == 0
    assert value(commands.prune(folder, **how), "kv_bytes_ssd") == 0
    assert value(commands.verify(folder), "verified") == 0


def test_prune_keeps_what_fits_after_the_clock_was_set_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = value(commands.ls(folder), "bytes_written")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    assert size / 3 < value(commands.prune(folder, keep=size // 2), "kv_bytes_ssd") <= size // 2


def test_block_that_cannot_be_removed_does_not_stop_the_removal_of_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StoreFolder.remove_file
    stuck = next(path.name for path in (folder / "blocks").rglob("*") if path.is_file())

    def remove(self: StoreFolder, key: bytes) -> None:
        if key.hex() == stuck:
            raise PermissionError(1, "Operation not permitted")
        real(self, key)

    monkeypatch.setattr(StoreFolder, "remove_file", remove)
    rows = commands.prune(folder, keep=0)
    assert value(rows, "not_removable") == 1 and value(rows, "removed") > 0
    monkeypatch.undo()
    assert value(commands.verify(folder), "corrupt") == 0
    assert value(commands.prune(folder, keep=0), "kv_bytes_ssd") == 0


def test_clear_one_tenant_while_a_store_is_open(folder: Path) -> None:
    with opened(folder) as store:
        assert value(commands.clear(folder, tenant="bob"), "removed") == 4
        assert fetch(store, A).tokens == 30 and fetch(store, A, OTHER).tokens == 0
        put(store, A, ns=OTHER)
        assert fetch(store, A, OTHER).tokens == 30
        sound(store)
    commands.clear(folder)
    assert not [path for path in (folder / "blocks").rglob("*") if path.is_file()]
    with opened(folder) as store:
        sound(store)
        assert fetch(store, B).tokens == 0


def test_missing_store_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    for command in (commands.ls, commands.verify, commands.clear):
        with pytest.raises(StoreError, match="there is no store"):
            command(tmp_path)
    assert not list(tmp_path.iterdir())


def test_command_line_prints_rows_and_sets_the_exit_status(folder: Path) -> None:
    def run(*arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, [*arguments, "--dir", str(folder)], standalone_mode=True)
        assert result.exit_code == status, result.output
        return result.stdout

    assert "misses (never_seen)" in run("ls") and "tenant bob" in run("ls")
    document = json.loads(run("verify", "--json"))
    assert document["command"] == "store verify" and value(document["rows"], "corrupt") == 0
    next(path for path in (folder / "blocks").rglob("*") if path.is_file()).write_bytes(b"")
    assert "corrupt" in run("verify", status=1)
    run("prune", "--keep", "lots", status=2)
    assert "removed" in run("prune", "--keep", "1KB", "--unused", "0s")
    assert "removed" in run("clear", "--yes")


@pytest.mark.parametrize("how", [{"keep": 0}, {"unused": 0.0}])
def test_prune_removes_answers_also_after_the_clock_was_set_back(
    folder: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = folder / "answers"
    answers.mkdir(exist_ok=True)
    (answers / f"{'a' * 64}-open.answer").write_bytes(b"x")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    commands.prune(folder, unused=60.0)
    assert list(answers.iterdir()), "used just now"
    commands.prune(folder, **how)
    assert not list(answers.iterdir())
