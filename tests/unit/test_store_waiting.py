"""Processes that hold a store and do not go on: reading passes by them, writing waits for a while and then names them.

The class: a process that is stopped, or stuck, while it has the store open, opens it, or writes into its index. And a
folder to which nothing can be written.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvlab.cli.store import app
from kvlab.errors import StoreError
from kvlab.store import commands
from kvlab.store.ssd import folder as store_folder
from kvlab.store.ssd import index
from tests.processes import ROOT, environment
from tests.store_kit import fetch, opened, put
from tests.unit.test_store_other_folders import TALKS, filled, state

HOLD = """
import sys
from pathlib import Path
from tests.store_kit import opened, put
from tests.store_writer import talk
from kvlab.store.ssd import process_lock
root, how = Path(sys.argv[1]), sys.argv[2]
if how == "opening":
    with process_lock.opening(root, 1.0):
        print("ready", flush=True)
        sys.stdin.read()
store = opened(root)
put(store, talk(30))
store.flush()
if how == "writing":
    with store._tiers[0]._folder.index.write() as db:
        db.execute("DELETE FROM blocks")
        print("ready", flush=True)
        sys.stdin.read()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["open", "opening", "writing"])
def stopped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str, int]]:
    """A store, what a stopped process does with it, and the number of that process."""
    root = filled(tmp_path / "store")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), request.param],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGSTOP)
    yield root, request.param, child.pid
    child.kill()
    child.communicate()


def test_ls_and_verify_pass_by_a_stopped_process_and_change_nothing(stopped: tuple[Path, str, int]) -> None:
    root, how, _ = stopped
    before = state(root)
    rows = commands.verify(root)
    assert [row["value"] for row in rows if row["metric"] in ("corrupt", "unreadable", "unindexed")] == [0, 0, 0]
    assert any(row["metric"] == "blocks" and row["value"] > 10 for row in commands.ls(root))
    assert state(root) == before


def test_commands_that_write_name_the_process_that_holds_the_store(
    stopped: tuple[Path, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, how, pid = stopped
    monkeypatch.setattr(store_folder, "LOCK_WAIT_S", 0.1)
    for command in (["prune", "--keep", "0"], ["clear", "--yes"], ["verify", "--repair"]):
        answer = CliRunner().invoke(app, [*command, "--dir", str(root)])
        if how == "open":
            assert answer.exit_code == 0, "a process that is only there keeps nobody waiting"
        else:
            assert answer.exit_code != 0 and isinstance(answer.exception, StoreError)
            line = str(answer.exception)
            assert f"process {pid}" in line and "kill -CONT" in line and "\n" not in line


def test_store_beside_a_stopped_process_serves_what_is_there(
    stopped: tuple[Path, str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, how, pid = stopped
    monkeypatch.setattr(store_folder, "LOCK_WAIT_S", 0.1)
    with opened(root) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        assert (str(pid) in caplog.text) == (how == "opening")


def test_waiting_ends_as_soon_as_the_other_process_goes_on(tmp_path: Path) -> None:
    root = filled(tmp_path / "store")
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), "opening"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    done = threading.Thread(target=lambda: (time.sleep(0.2), child.kill()))
    done.start()
    assert commands.prune(root, keep=0)
    done.join()
    child.communicate()


READS: list[Callable[[Path], object]] = [commands.ls, commands.verify]


@pytest.mark.parametrize("left", ["in order", "killed", "killed, without the shared memory", "in use"])
@pytest.mark.parametrize("marker", [True, False])
def test_reading_changes_no_byte(tmp_path: Path, left: str, marker: bool) -> None:
    root = tmp_path / "store"
    store = opened(root)
    for tokens in TALKS:
        put(store, tokens)
    store.flush()
    if left.startswith("killed"):
        (tmp_path / "copy").mkdir()
        subprocess.run(["cp", "-a", root, tmp_path / "copy"], check=True)
        root = tmp_path / "copy" / "store"
        if "without" in left:
            (root / "catalog.sqlite-shm").unlink()
    if left != "in use":
        store.close()
    if not marker:
        (root / "kvlab-store.json").unlink()
    (root / "tmp" / f"{'0' * 32}-1").write_bytes(b"half a file")
    (root / "owners" / f"{'0' * 32}.lock").touch()
    before = state(root)
    for work in READS:
        rows = work(root)
        assert isinstance(rows, list) and rows
    assert state(root) == before
    store.close()


@pytest.mark.parametrize("left", ["in order", "killed"])
def test_reading_needs_no_right_to_write(tmp_path: Path, left: str) -> None:
    """As another user may look at a store, or anybody at one on a read-only volume."""
    root = filled(tmp_path / "store")
    if left == "killed":
        with opened(root) as store:
            put(store, TALKS[0][:-1])
            store.flush()
            subprocess.run(["cp", "-a", root, tmp_path / "copy"], check=True)
        root = tmp_path / "copy"
    with locked(root):
        before = state(root)
        for work in READS:
            assert work(root)
        assert state(root) == before


class locked:
    """A folder of which everything is read-only, for a user without special rights."""

    def __init__(self, root: Path) -> None:
        self.paths = [*root.rglob("*"), root]
        self.parents = [parent for parent in root.parents if parent.stat().st_mode & 0o077 == 0]

    def __enter__(self) -> None:
        for path in self.paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        for parent in self.parents:
            parent.chmod(0o711)
        if os.geteuid() == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in [*reversed(self.paths), *self.parents]:
            path.chmod(0o700)


def test_index_that_another_process_keeps_replacing_is_read_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = filled(tmp_path / "store")
    monkeypatch.setattr(index.SsdIndex, "is_outdated", lambda _: True)
    with pytest.raises(StoreError, match="changes too quickly"):
        commands.ls(root)
