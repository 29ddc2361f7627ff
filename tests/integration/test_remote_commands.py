"""``kvlab store ls|verify|prune --remote URL``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvlab.cli.main import main
from kvlab.store.remote.client import connect
from kvlab.store.remote.sealing import BLOCKS, CHILDREN
from tests.remote_kit import shared
from tests.store_kit import BLOCK, fetch, put

pytest.importorskip("obstore", reason="the extra `remote` is not installed")
TALKS = [list(range(n * 1000, n * 1000 + 3 * BLOCK)) for n in range(1, 5)]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("KVLAB_REMOTE_KEY", raising=False)
    url = f"file://{tmp_path}/remote"
    with shared(url) as store:
        for talk in TALKS:
            put(store, talk)
        assert store.flush()
    return url


def rows(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    assert main(["store", *words, "--json"]) == status
    found = json.loads(capsys.readouterr().out)["rows"]
    assert all(row["workload"] == "store" for row in found)
    return {row["metric"]: row for row in found}


def test_ls_counts_what_lies_there(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "ls", "--remote", url)
    files = [path for path in (tmp_path / "remote" / BLOCKS).iterdir()]
    assert found["blocks"]["value"] == len(files) == 12
    assert found["kv_bytes_remote"]["value"] == sum(path.stat().st_size for path in files)
    assert 0 <= found["used_s"]["value"] <= found["unused_s"]["value"]


def test_verify_finds_bad_blocks_and_repair_removes_them(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(capsys, "verify", "--remote", url)["verified"]["value"] == 12
    client = connect(url, None)
    first, second, third, *_ = sorted(block.name for block in client.blocks(BLOCKS))
    client.write({first: b"nonsense", second: client.read([third])[third]})
    found = rows(capsys, "verify", "--remote", url, status=1)
    assert found["corrupt"]["value"] == 2 and found["verified"]["value"] == 10
    assert found["corrupt_file"]["file"] in (first, second)
    found = rows(capsys, "verify", "--remote", url, "--repair")
    assert found["removed"]["value"] == 2
    assert rows(capsys, "verify", "--remote", url)["verified"]["value"] == 10
    client.close()


def test_verify_tells_what_another_secret_sealed(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVLAB_REMOTE_KEY", "0a" * 32)
    with shared(url) as store:
        put(store, TALKS[0])
        assert store.flush()
    monkeypatch.delenv("KVLAB_REMOTE_KEY")
    found = rows(capsys, "verify", "--remote", url, "--repair")
    assert found["locked"]["value"] == 3 and found["verified"]["value"] == 12 and found["removed"]["value"] == 0
    monkeypatch.setenv("KVLAB_REMOTE_KEY", "0a" * 32)
    assert rows(capsys, "verify", "--remote", url, status=1)["verified"]["value"] == 3


def test_prune_keeps_whole_chains(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = rows(capsys, "ls", "--remote", url)["kv_bytes_remote"]["value"]
    found = rows(capsys, "prune", "--remote", url, "--keep", str(before // 2))
    assert found["removed"]["value"] == 6 and found["kv_bytes_remote"]["value"] <= before / 2
    client = connect(url, None)
    named = {BLOCKS + member for _, member in client.links(CHILDREN)}
    assert named == {block.name for block in client.blocks(BLOCKS)}
    client.close()
    with shared(url) as store:
        assert sum(fetch(store, talk).tokens for talk in TALKS) == 6 * BLOCK
    assert rows(capsys, "prune", "--remote", url, "--unused", "1h")["removed"]["value"] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ls", "--remote", "http://host"], "redis://host:6379/0"),
        (["ls", "--remote", "redis://127.0.0.1:1"], "the remote redis://127.0.0.1:1"),
        (["ls", "--remote", "redis://me:pw@host"], "KVLAB_REMOTE_PASSWORD"),
        (["ls", "--remote", "file:///tmp/x", "--dir", "y"], "leave one of --dir and --remote out"),
        (["prune", "--remote", "file:///tmp/x", "--keep", "1GB", "--tenant", "a"], "leave --tenant out"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", *words]) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.err.strip().count("\n") == 0 and "pw" not in shown.err
