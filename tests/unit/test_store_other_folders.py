"""Folders that are not kvlab's, and things in a store's folder that kvlab did not put there: nothing of them changes.

The class: any non-empty folder without a marker and without an index of kvlab's, and in a store any entry whose name or
type is not one that kvlab gives, at any depth, for every command and for a store that is opened.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvlab.cli.store import app
from kvlab.errors import StoreError
from kvlab.store import commands
from kvlab.store.ssd.layout import MARKER
from tests.store_kit import fetch, opened, put, sound
from tests.store_writer import talk

TALKS = [talk(seed) for seed in range(4)]


def state(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Type and rights, times and bytes of all that is under ``root``, links not followed."""
    found = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        data = os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (about.st_mode, about.st_nlink, about.st_mtime_ns, data)
    return found


def users_folders(root: Path) -> None:
    for at in ("blocks", "tmp", "blocks/a"):
        (root / at).mkdir(parents=True)
    for i in range(25):
        (root / "blocks" / f"photo{i}.jpg").write_bytes(b"mine")
    (root / "tmp" / "letter").write_bytes(b"mine")


def names_of_kvlab(root: Path) -> None:
    (root / "blocks" / "a").mkdir(parents=True)
    (root / "blocks" / "a" / ("a" * 64)).write_bytes(b"mine")
    (root / "tmp").mkdir()
    (root / "tmp" / f"{'0' * 32}-1").write_bytes(b"mine")
    (root / "quarantine").mkdir()
    for i in range(20):
        (root / "quarantine" / f"{i}-{'a' * 64}").write_bytes(b"mine")
    (root / "owners").mkdir()
    (root / "owners" / f"{'0' * 32}.lock").write_bytes(b"mine")


def users_database(root: Path) -> None:
    root.mkdir()
    db = sqlite3.connect(root / "catalog.sqlite")
    db.execute("CREATE TABLE photos (name)")
    db.commit()
    db.close()


def garbage_as_index(root: Path) -> None:
    (root / "blocks").mkdir(parents=True)
    (root / "catalog.sqlite").write_bytes(b"not a database" * 1000)


def hidden_file(root: Path) -> None:
    root.mkdir()
    (root / ".config").write_bytes(b"mine")


def other_marker(root: Path) -> None:
    root.mkdir()
    (root / MARKER).write_text('{"theirs": 1}')


FOREIGN = [users_folders, names_of_kvlab, users_database, garbage_as_index, hidden_file, other_marker]


@pytest.mark.parametrize("make", FOREIGN)
def test_folder_of_other_things_is_refused_and_left_as_it_is(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = tmp_path / "w"
    make(root)
    before = state(tmp_path)
    for work in (
        lambda: opened(root),
        lambda: commands.ls(root),
        lambda: commands.verify(root),
        lambda: commands.verify(root, repair=True),
        lambda: commands.prune(root, keep=0),
        lambda: commands.clear(root),
    ):
        with pytest.raises(StoreError, match="kvlab store|marker of kvlab's") as error:
            work()
        assert "use" in str(error.value) and "\n" not in str(error.value)
    for command in (["ls"], ["verify"], ["prune", "--keep", "0"], ["clear", "--yes"]):
        assert CliRunner().invoke(app, [*command, "--dir", str(root)]).exit_code != 0
    assert state(tmp_path) == before


@pytest.mark.parametrize("there", [False, True])
def test_absent_or_empty_folder_becomes_a_store(tmp_path: Path, there: bool) -> None:
    root = tmp_path / "new" / "store"
    if there:
        root.mkdir(parents=True)
    with opened(root) as store:
        put(store, TALKS[0])
    marker = root / MARKER
    assert json.loads(marker.read_bytes())["format"] == 2 and stat.S_IMODE(marker.stat().st_mode) == 0o600
    with opened(root) as store:
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])


def filled(root: Path) -> Path:
    with opened(root) as store:
        for tokens in TALKS:
            put(store, tokens)
    return root


def test_store_of_an_earlier_kvlab_is_known_by_its_index_and_marked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = filled(tmp_path / "store")
    (root / MARKER).unlink()
    assert any(row["metric"] == "blocks" for row in commands.ls(root))
    assert commands.verify(root) and not (root / MARKER).exists(), "reading does not mark it"
    with caplog.at_level("INFO", "kvlab.store"), opened(root) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)
    assert (root / MARKER).exists() and "marked" in caplog.text


def test_store_of_an_earlier_kvlab_that_was_killed_is_known_though_its_index_is_still_in_the_log(
    tmp_path: Path,
) -> None:
    """SQLite's main file says whose it is only after a checkpoint."""
    root, copy = tmp_path / "store", tmp_path / "copy"
    with opened(root) as store:
        put(store, TALKS[0])
        store.flush()
        shutil.copytree(root, copy)
    assert (copy / "catalog.sqlite").read_bytes()[68:72] == b"\0" * 4
    for memory in (True, False):
        (copy / MARKER).unlink(missing_ok=True)
        if not memory:
            (copy / "catalog.sqlite-shm").unlink(missing_ok=True)
        assert any(row["metric"] == "blocks" for row in commands.ls(copy))
    with opened(copy) as store:
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])


def test_marker_that_a_power_cut_emptied_counts_and_is_written_again(tmp_path: Path) -> None:
    root = filled(tmp_path / "store")
    text = (root / MARKER).read_bytes()
    for left in (b"", text[:9], b"\0" * len(text)):
        (root / MARKER).write_bytes(left)
        with opened(root) as store:
            assert fetch(store, TALKS[0]).tokens == len(TALKS[0])
        assert (root / MARKER).read_bytes() == text


def test_store_of_a_newer_kvlab_is_refused_even_without_its_index(tmp_path: Path) -> None:
    root = filled(tmp_path / "store")
    (root / MARKER).write_text('{"what": "kvlab store", "format": 3}')
    (root / "catalog.sqlite").unlink()
    before = state(root)
    for work in (lambda: opened(root), lambda: commands.clear(root), lambda: commands.ls(root)):
        with pytest.raises(StoreError, match="newer kvlab"):
            work()
    assert state(root) == before


def test_database_of_another_program_in_place_of_the_index_is_left_alone(tmp_path: Path) -> None:
    root = filled(tmp_path / "store")
    (root / "catalog.sqlite").unlink()
    db = sqlite3.connect(root / "catalog.sqlite")
    db.execute("CREATE TABLE photos (name)")
    db.commit()
    db.close()
    with pytest.raises(StoreError, match="another program's database"):
        opened(root)
    db = sqlite3.connect(root / "catalog.sqlite")
    assert db.execute("SELECT count(*) FROM photos").fetchone() == (0,)
    db.close()


STRANGERS = [
    "letter", "blocks/letter", "blocks/a/letter", "blocks/a/{b64}", "blocks/zz/{a64}", "blocks/a/{a64}.bak", "blocks/A",
    "tmp/letter", "tmp/{a32}", "tmp/{a32}-", "owners/foo.lock", "owners/{a32}.lock.bak", "quarantine/letter",
    "quarantine/1-letter", "blocks/a/\udcff", "kvlab-store.json.bak",
]  # fmt: skip


def put_strangers(root: Path) -> None:
    """Things with names that kvlab never gives, and folders and pipes with names that it does."""
    for pattern in STRANGERS:
        path = root / pattern.format(a32="a" * 32, a64="a" * 64, b64="b" * 64)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    for name in (f"tmp/{'0' * 32}-1", f"owners/{'0' * 32}.lock", f"blocks/0/{'0' * 64}", f"quarantine/1-{'0' * 64}"):
        (root / name).mkdir(parents=True)
        (root / name / "letter").write_bytes(b"mine")
    for name in (f"tmp/{'1' * 32}-1", f"owners/{'1' * 32}.lock", f"blocks/1/{'1' * 64}", f"quarantine/1-{'1' * 64}"):
        (root / name).parent.mkdir(exist_ok=True)
        os.mkfifo(root / name)
    (root / "tmp" / "folder").mkdir()


def strangers(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    with_times = state(root)
    own = {name for name, (mode, *_, data) in with_times.items() if stat.S_ISREG(mode) and data != b"mine"}
    mine = {name: about for name, about in with_times.items() if name not in own and not stat.S_ISDIR(about[0])}
    return mine | {name: (about[0], 0, 0, b"") for name, about in with_times.items() if stat.S_ISDIR(about[0])}


@pytest.mark.parametrize("index", ["kept", "lost"])
@pytest.mark.parametrize("clean", [True, False])
def test_strangers_in_a_store_stay_and_do_not_disturb_it(tmp_path: Path, index: str, clean: bool) -> None:
    root = filled(tmp_path / "store")
    put_strangers(root)
    if index == "lost":
        (root / "catalog.sqlite").unlink()
    if not clean:
        (root / "owners" / f"{'2' * 32}.lock").touch()
        (root / "tmp" / f"{'2' * 32}-1").write_bytes(b"half")
    before = strangers(root)
    with opened(root) as store:
        assert store.stats()["trouble"] == ""
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        put(store, talk(9))
        assert store.flush()
        sound(store)
    assert not (root / "tmp" / f"{'2' * 32}-1").exists()
    commands.ls(root)
    commands.verify(root, repair=True)
    commands.prune(root, keep=1000)
    commands.clear(root)
    assert {name: about for name, about in strangers(root).items() if name in before} == before


def test_block_whose_place_a_stranger_has_is_not_written_and_others_are(tmp_path: Path) -> None:
    root = filled(tmp_path / "store")
    taken = next(path for path in (root / "blocks").rglob("*") if path.is_file())
    taken.unlink()
    taken.mkdir()
    (taken / "letter").write_bytes(b"mine")
    with opened(root) as store:
        for tokens in [*TALKS, talk(9)]:
            put(store, tokens)
        store.flush()
        assert store.stats()["trouble"] == "" and store.stats()["refused"] >= 1
        assert fetch(store, talk(9)).tokens == len(talk(9))
    assert (taken / "letter").read_bytes() == b"mine"
