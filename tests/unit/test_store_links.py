"""Links in a store's folder: nothing outside the folder is deleted, moved, written or given other rights.

The class: a symbolic link (to a folder, to a file, dangling, among blocks) or a second name of somebody's file, in
place of anything that kvlab has in its folder, before the store is opened or while it is open.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvlab.errors import StoreError
from kvlab.store import commands
from kvlab.store.ssd.layout import ANSWERS, FOLDERS, MARKER
from tests.store_kit import fetch, opened, put
from tests.store_writer import talk
from tests.unit.test_store_other_folders import TALKS, filled, state

KEY, OWNER = "a" * 64, "0" * 32


def outside(tmp_path: Path) -> Path:
    """A user's folder with names that kvlab would give."""
    mine = tmp_path / "mine"
    for name in (KEY, f"a/{KEY}", f"{OWNER}-1", f"{OWNER}.lock", *(f"{i:02}-{KEY}" for i in range(20)), "letter"):
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_bytes(b"mine")
    return mine


def use(root: Path) -> list[str]:
    """Do everything that is done with a store; return the refusals."""
    refused = []
    for work in (
        lambda: opened(root).close(),
        lambda: commands.ls(root),
        lambda: commands.verify(root),
        lambda: commands.verify(root, repair=True),
        lambda: commands.prune(root, keep=0),
        lambda: commands.clear(root),
    ):
        try:
            work()
        except StoreError as error:
            refused.append(str(error))
    return refused


@pytest.mark.parametrize("name", [*FOLDERS, ANSWERS, "blocks/a", "blocks/0"])
@pytest.mark.parametrize("dangling", [False, True])
def test_link_in_place_of_a_folder_is_refused(tmp_path: Path, name: str, dangling: bool) -> None:
    root, mine = filled(tmp_path / "store"), outside(tmp_path)
    if (root / name).exists():
        (root / name).rename(tmp_path / "moved")
    (root / name).symlink_to(tmp_path / "nowhere" if dangling else mine)
    before = state(tmp_path)
    refused = use(root)
    assert len(refused) == 6 and all(name in line and "link" in line for line in refused)
    assert state(tmp_path) == before


IN_PLACE = ["catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm", "open.lock", MARKER]


@pytest.mark.parametrize("name", [*IN_PLACE, "ballast", "catalog.suspect"])
@pytest.mark.parametrize("dangling", [False, True])
def test_link_in_place_of_a_file_is_refused(tmp_path: Path, name: str, dangling: bool) -> None:
    root, mine = filled(tmp_path / "store"), outside(tmp_path)
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(tmp_path / "nowhere" if dangling else mine / "letter")
    before = state(tmp_path)
    refused = use(root)
    assert len(refused) == 6 and all(name in line and "link" in line for line in refused)
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", IN_PLACE)
def test_second_name_of_a_file_that_is_written_in_place_is_refused(tmp_path: Path, name: str) -> None:
    root = filled(tmp_path / "store")
    (root / name).touch()
    os.link(root / name, tmp_path / "mine")
    before = state(tmp_path)
    assert len(use(root)) == 6
    assert state(tmp_path) == before


def test_links_among_files_stay_and_what_they_name_too(tmp_path: Path) -> None:
    root, mine = filled(tmp_path / "store"), outside(tmp_path)
    block = next(path for path in (root / "blocks").rglob("*") if path.is_file())
    block.rename(mine / "block")
    links = [
        block,
        root / "blocks" / "a" / KEY,
        root / "tmp" / f"{OWNER}-1",
        root / "owners" / f"{OWNER}.lock",
        root / "quarantine" / f"1-{KEY}",
    ]
    for link, target in zip(links, [mine / "block", mine / KEY, mine / "letter", mine, tmp_path / "no"], strict=True):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
    before = state(mine)
    with opened(root) as store:
        served = sum(fetch(store, tokens).tokens for tokens in TALKS)
        assert 0 < served < sum(map(len, TALKS)), "a link is no block"
        for tokens in TALKS:
            put(store, tokens)
        store.flush()
    assert use(root) == []
    assert state(mine) == before and all(link.is_symlink() for link in links)


def test_second_names_of_blocks_elsewhere_keep_their_bytes(tmp_path: Path) -> None:
    """A backup by hard links: a store may drop its own names, never change the bytes."""
    root, backup = filled(tmp_path / "store"), tmp_path / "backup"
    backup.mkdir()
    for path in (root / "blocks").rglob("*"):
        if path.is_file():
            os.link(path, backup / path.name)
    os.link(backup / path.name, root / "tmp" / f"{OWNER}-1")
    before = {path.name: path.read_bytes() for path in backup.iterdir()}
    assert use(root) == []
    with opened(root) as store:
        for tokens in TALKS:
            put(store, tokens)
    assert {path.name: path.read_bytes() for path in backup.iterdir()} == before


@pytest.mark.parametrize("name", ["blocks/{}", "tmp", "quarantine"])
def test_link_put_into_an_open_store_is_not_followed(tmp_path: Path, name: str) -> None:
    root, mine = filled(tmp_path / "store"), outside(tmp_path)
    block = next(path for path in (root / "blocks").rglob("*") if path.is_file())
    with opened(root, ssd=20_000) as store:
        folder = root / name.format(block.name[0])
        for path in folder.iterdir():
            path.rename(mine / path.name)
        folder.rmdir()
        folder.symlink_to(mine)
        before = state(mine)
        for tokens in [*TALKS, *map(talk, range(20, 30))]:
            fetch(store, tokens)
            put(store, tokens)
            store.flush()
    assert state(mine) == before


def test_store_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    filled(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with opened(tmp_path / "link") as store:
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])
    assert use(tmp_path / "link") == []
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match="is not there"):
        opened(tmp_path / "dangling")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(StoreError, match="is a file"):
        opened(tmp_path / "file")
