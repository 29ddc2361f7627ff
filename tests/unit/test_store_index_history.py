"""An index and files that do not belong together: the folder keeps its budget, its sound blocks and all foreign files.

The class: any history of puts, restarts and crashes in which the index is replaced by an older copy of itself (with or
without its log), lost, emptied, cut, or garbled, or files are put back or taken away.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kvlab.store import Store, commands
from kvlab.store.ssd import blockfile, tier
from tests.processes import ROOT, environment
from tests.soaking import times
from tests.store_kit import fetch, opened, put, sound
from tests.store_writer import talk

TALKS = [talk(seed) for seed in range(8)]
SUFFIXES = ("", "-wal", "-shm")


def index_files(root: Path) -> list[Path]:
    return [path for suffix in SUFFIXES if (path := root / f"catalog.sqlite{suffix}").exists()]


def copy_index(root: Path, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for path in index_files(root):
        shutil.copy(path, to)


def put_back(copy: Path, root: Path, *, leave_log: bool = False) -> None:
    """Replace the index by a copy; ``leave_log`` leaves the newer log beside the older file."""
    if not leave_log:
        for path in index_files(root):
            path.unlink()
    for path in copy.iterdir():
        if not leave_log or path.name == "catalog.sqlite":
            shutil.copy(path, root)


def held(root: Path) -> int:
    """Bytes of everything that counts for the budget."""
    files = [path for at in ("blocks", "tmp", "quarantine") for path in (root / at).rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files if "photo" not in path.name)


def block_names(root: Path) -> set[str]:
    return {path.name for path in (root / "blocks").rglob("*") if path.is_file()}


def filled(root: Path, talks: list[list[int]], **settings: int) -> int:
    with opened(root, **settings) as store:
        for tokens in talks:
            put(store, tokens)
    return held(root)


def test_older_index_does_not_hide_bytes_from_the_budget(tmp_path: Path) -> None:
    root = tmp_path / "store"
    half = filled(root, TALKS[:4])
    copy_index(root, tmp_path / "copy")
    budget = filled(root, TALKS[4:])
    put_back(tmp_path / "copy", root)
    for seed in range(20, 24):
        filled(root, [talk(seed)], ssd=budget)
        assert half < held(root) <= budget
    with opened(root, ssd=budget) as store:
        sound(store)


@pytest.mark.parametrize("index", ["older", "older, with the newer log", "lost", "emptied", "cut", "another format"])
@pytest.mark.parametrize("killed", [False, True])
def test_no_sound_block_is_lost_with_the_index(
    tmp_path: Path, index: str, killed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "store"
    filled(root, TALKS[:4])
    copy_index(root, tmp_path / "copy")
    with opened(root) as store:
        for tokens in TALKS[4:]:
            put(store, tokens)
        store.flush()
        copy_index(root, tmp_path / "log")
    names = block_names(root)
    if index.startswith("older"):
        put_back(tmp_path / "copy", root)
        if "log" in index:
            put_back(tmp_path / "log", root)
            put_back(tmp_path / "copy", root, leave_log=True)
    elif index == "lost":
        (root / "catalog.sqlite").unlink()
    elif index == "emptied":
        (root / "catalog.sqlite").write_bytes(b"")
    elif index == "cut":
        os.truncate(root / "catalog.sqlite", 3 * 4096)
    else:
        data = bytearray((root / "catalog.sqlite").read_bytes())
        data[60:64], data[68:72] = b"\0\0\0\1", b"\x6b\x76\0\1"
        (root / "catalog.sqlite").write_bytes(data)
    if killed:
        (root / "owners" / f"{'0' * 32}.lock").touch()
    with opened(root) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)
    assert block_names(root) == names


@pytest.mark.parametrize("killed", [False, True])
def test_index_newer_than_the_files_frees_the_bytes_of_what_is_gone(tmp_path: Path, killed: bool) -> None:
    root = tmp_path / "store"
    budget = filled(root, TALKS)
    gone = sorted(path for path in (root / "blocks").rglob("*") if path.is_file())[::2]
    for path in gone:
        path.unlink()
    if killed:
        (root / "owners" / f"{'0' * 32}.lock").touch()
    left = block_names(root)
    with opened(root, ssd=budget) as store:
        sound(store)
        assert store.tiers_bytes()["ssd"] == held(root)
        put(store, talk(30))
        store.flush()
        assert fetch(store, talk(30)).tokens == len(talk(30))
    assert left <= block_names(root), "nothing had to leave"


def test_files_put_back_after_a_clean_end_are_found(tmp_path: Path) -> None:
    root = tmp_path / "store"
    budget = filled(root, TALKS[:4])
    shutil.copytree(root / "blocks", tmp_path / "old")
    commands.clear(root)
    filled(root, TALKS[4:])
    shutil.copytree(tmp_path / "old", root / "blocks", dirs_exist_ok=True)
    with opened(root) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
    with opened(root, ssd=budget) as store:
        assert held(root) <= budget
        sound(store)


def test_blocks_of_another_format_do_not_hide_from_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones are never read again and go; newer ones, of a kvlab that will be back, stay while there is space."""
    root = tmp_path / "store"
    total = filled(root, TALKS)
    older, newer, *_ = sorted(path for path in (root / "blocks").rglob("*") if path.is_file())
    for path, version in ((older, 1), (newer, 3)):
        block = blockfile.read(path, bytes.fromhex(path.name))
        monkeypatch.setattr("kvlab.store.keys.FORMAT", version)
        path.write_bytes(b"".join(blockfile.encode(block)))
        monkeypatch.undo()
    (root / "catalog.sqlite").unlink()
    with opened(root, ssd=2 * total):
        assert newer.exists() and not older.exists()
    with opened(root, ssd=total // 4):
        assert held(root) <= total // 4


def test_two_processes_that_open_one_mismatched_folder_agree(tmp_path: Path) -> None:
    root = tmp_path / "store"
    filled(root, TALKS[:2])
    copy_index(root, tmp_path / "copy")
    budget = filled(root, TALKS[2:])
    put_back(tmp_path / "copy", root)
    script = (
        "import sys; from pathlib import Path; from tests.store_kit import *; from tests.store_writer import talk\n"
        f"with opened(Path({str(root)!r}), ssd={budget}) as store:\n"
        "    for seed in range(8): fetch(store, talk(seed))\n"
        "    assert store.stats()['trouble'] == '' and store.stats()['corrupt'] == 0, store.stats()\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment()) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    with opened(root, ssd=budget) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)


class History(RuleBasedStateMachine):
    """Puts, restarts, crashes and indexes put back, in any order, on a folder with a small budget."""

    budget = 12_000

    @initialize()
    def begin(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="kvlab-history-"))
        self.root = self.base / "store"
        self.store: Store = self.open()
        self.copies: list[Path] = []
        self.foreign = [self.root / at / "photo" for at in ("", "blocks", "blocks/a", "tmp", "owners", "quarantine")]
        for path in self.foreign:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"mine")

    def open(self) -> Store:
        return opened(self.root, ssd=self.budget, ram=4000)

    def reopen(self) -> None:
        self.store = self.open()
        assert self.store.stats()["trouble"] == ""
        assert held(self.root) <= self.budget
        sound(self.store)

    @rule(seed=st.integers(0, 12))
    def put(self, seed: int) -> None:
        put(self.store, talk(seed))
        self.store.flush()

    @rule(seed=st.integers(0, 12))
    def read(self, seed: int) -> None:
        fetch(self.store, talk(seed))

    @rule()
    def copy(self) -> None:
        self.copies.append(self.base / f"copy{len(self.copies)}")
        copy_index(self.root, self.copies[-1])

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.reopen()

    @rule(which=st.integers(0, 9), leave_log=st.booleans())
    def restart_with_an_older_index(self, which: int, leave_log: bool) -> None:
        """With ``leave_log`` the process was killed, and its log lies beside a file that it does not belong to."""
        if not self.copies:
            return
        copy_index(self.root, self.base / "before")
        self.store.close()
        if leave_log:
            put_back(self.base / "before", self.root)
        shutil.rmtree(self.base / "before")
        put_back(self.copies[which % len(self.copies)], self.root, leave_log=leave_log)
        self.reopen()

    @rule(cut=st.integers(0, 60_000), how=st.sampled_from(["cut", "lost", "emptied"]))
    def restart_with_a_damaged_index(self, cut: int, how: str) -> None:
        self.store.close()
        path = self.root / "catalog.sqlite"
        if how == "lost":
            path.unlink()
        else:
            os.truncate(path, 0 if how == "emptied" else min(cut, path.stat().st_size))
        self.reopen()

    @rule(seed=st.integers(0, 12), when=st.sampled_from(["between", "reserved", "renamed", "evicting"]))
    def crash(self, seed: int, when: str) -> None:
        """Go on from what a kill leaves: the log is not yet in the index, and one block is half written or gone."""
        put(self.store, talk(seed))
        self.store.flush()
        killed, (owner,) = self.base / "killed", [path.stem for path in (self.root / "owners").glob("*.lock")]
        shutil.copytree(self.root, killed)
        self.store.close()
        shutil.rmtree(self.root)
        killed.rename(self.root)
        (self.root / "tmp" / f"{owner}-1").write_bytes(b"x" * 5000)
        if when != "between":
            db = sqlite3.connect(self.root / "catalog.sqlite")
            key = db.execute("SELECT key FROM blocks ORDER BY id DESC LIMIT 1").fetchone()[0].hex()
            if when != "evicting":
                db.execute("UPDATE blocks SET owner = ? WHERE key = ?", (owner, bytes.fromhex(key)))
                db.commit()
            if when != "renamed":
                (self.root / "blocks" / key[0] / key).unlink()
            db.close()
        self.reopen()

    @invariant()
    def nothing_foreign_is_touched(self) -> None:
        if hasattr(self, "foreign"):
            assert [path.read_bytes() for path in self.foreign] == [b"mine"] * len(self.foreign)

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.base)


@times(10)
def test_no_history_of_index_and_files_breaks_the_budget_or_serves_wrong_bytes(count: int) -> None:
    how = settings(
        max_examples=count, stateful_step_count=25, derandomize=count == 10,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    run_state_machine_as_test(History, settings=how)


@pytest.mark.parametrize("length", ["= 32", "< 32"], ids=["full blocks", "tails"])
def test_index_that_names_the_wrong_blocks_costs_no_sound_block(
    tmp_path: Path, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class: rows that are well formed and lie; the files that they name are sound under their own names."""
    root = tmp_path / "store"
    filled(root, TALKS)
    names = block_names(root)
    db = sqlite3.connect(root / "catalog.sqlite")
    rows = db.execute(f"SELECT id, key FROM blocks WHERE length(tokens) {length} ORDER BY id LIMIT 2").fetchall()
    (one, key_of_one), (two, key_of_two) = rows
    db.execute("UPDATE blocks SET key = X'00' WHERE id = ?", (one,))
    db.execute("UPDATE blocks SET key = ? WHERE id = ?", (key_of_one, two))
    db.execute("UPDATE blocks SET key = ? WHERE id = ?", (key_of_two, one))
    db.commit()
    db.close()
    monkeypatch.setattr(tier, "RETRY_S", 0.0)
    ends = [tokens[:end] for tokens in TALKS for end in (len(tokens), 5, 13)]
    with opened(root) as store:
        for tokens in ends:
            fetch(store, tokens)
        store.flush()
        assert [fetch(store, tokens).tokens for tokens in ends] == [len(tokens) for tokens in ends]
        sound(store)
    assert block_names(root) == names
