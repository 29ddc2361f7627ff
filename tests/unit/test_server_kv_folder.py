"""KV files saved by name: whole or not at all, private, and nothing but kvlab's own files is touched.

The class: a disk that is full or fails at any step of a save, what a killed save leaves, rights of every folder on the
way, and links or other things in place of a folder or file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvlab.models import LoadedModel
from kvlab.server import kv_folder
from kvlab.server.errors import ApiError
from kvlab.server.kv_folder import KVFolder
from kvlab.store.ssd import no_links
from tests.server_kit import Local, chat


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVLAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def fails_with(code: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


def test_file_is_written_read_listed_replaced_and_erased(home: Path) -> None:
    folder = KVFolder("bob")
    assert folder.sizes() == {}
    folder.write("mine", [b"one", b"two"])
    assert folder.read("mine") == b"onetwo" and folder.sizes() == {"mine": 6}
    folder.write("mine", [b"new"])
    assert folder.read("mine") == b"new" and KVFolder("alice").sizes() == {}
    folder.erase("mine")
    folder.erase("mine")
    with pytest.raises(ApiError, match="nothing is saved") as error:
        folder.read("mine")
    assert error.value.status == 404


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["write", "fsync", "rename", "open"])
def test_failed_save_says_why_and_leaves_nothing(
    home: Path, code: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = KVFolder("bob")
    folder.write("mine", [b"old"])
    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr(no_links, "create", fails_with(code))
        else:
            patch.setattr(kv_folder.os, step, fails_with(code))
        with pytest.raises(ApiError) as error:
            folder.write("mine", [b"new"])
    assert error.value.status == (507 if code in kv_folder.FULL else 500)
    assert os.strerror(code) in error.value.message
    assert ("erase" in error.value.message) == (error.value.status == 507)
    assert [path.name for path in (home / "slots" / "bob").iterdir()] == ["mine.kv"]
    assert folder.read("mine") == b"old", "what was saved before is still there"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    ) if shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_is_an_answer_and_is_as_full_as_before(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVLAB_HOME", str(small_disk))
    folder = KVFolder("")
    folder.write("small", [bytes(1000)])
    free = os.statvfs(small_disk).f_bfree
    for _ in range(3):
        with pytest.raises(ApiError, match="No space left") as error:
            folder.write("large", [bytes(1 << 20)])
        assert error.value.status == 507
    assert os.statvfs(small_disk).f_bfree == free and folder.sizes() == {"small": 1000}


def test_client_is_told_that_the_disk_is_full_and_others_go_on(
    small_disk: Path, bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLAB_HOME", str(small_disk))
    with Local("paged", bundled) as server:
        body = chat("Some long question about many things, asked once.", max_tokens=4)
        assert server.post("/v1/chat/completions", body).status_code == 200
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        answer = server.post("/slots/0?action=save", {"filename": "mine"})
        assert answer.status_code == 507 and "No space left" in answer.json()["error"]["message"]
        assert server.get("/slots").json() == []
        assert not [path for path in (small_disk / "slots").rglob("*") if path.is_file()]
        filler.unlink()
        assert server.post("/v1/chat/completions", body).status_code == 200


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_every_folder_and_file_is_private_whatever_the_umask(home: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        KVFolder("bob").write("mine", [b"x"])
    finally:
        os.umask(old)
    for path in [home, *home.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_folder_of_an_earlier_kvlab_is_made_private(home: Path) -> None:
    (home / "slots").mkdir(mode=0o755, parents=True)
    KVFolder("bob").write("mine", [b"x"])
    assert stat.S_IMODE((home / "slots").stat().st_mode) == 0o700


def test_leftovers_of_killed_saves_go_and_other_files_stay(home: Path) -> None:
    folder = KVFolder("bob")
    folder.write("mine", [b"x"])
    at = home / "slots" / "bob"
    old, young = at / f".mine-{'0' * 16}.new", at / f".other-{'1' * 16}.new"
    kept = [at / "letter", at / ".mine.new", at / ".mine-letter.new", at / "tmpabcdefgh", young]
    for path in [old, *kept]:
        path.write_bytes(b"mine")
        if path is not young:
            os.utime(path, (time.time() - 2 * kv_folder.MAX_UNFINISHED_AGE_S,) * 2)
    link = at / f".mine-{'2' * 16}.new"
    link.symlink_to(at / "letter")
    folder.write("mine", [b"y"])
    assert not old.exists() and all(path.read_bytes() == b"mine" for path in kept) and link.is_symlink()
    assert folder.sizes() == {"mine": 1}


@pytest.mark.parametrize("name", ["slots", "slots/bob", "slots/bob/mine.kv"])
@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_links_are_refused_and_what_they_name_stays(home: Path, tmp_path: Path, name: str, target: str) -> None:
    mine = tmp_path / "there"
    (mine / "bob").mkdir(parents=True, mode=0o755)
    for path in (mine / "mine.kv", mine / "bob" / "mine.kv"):
        path.write_bytes(b"mine")
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    is_file = name.endswith(".kv")
    (home / name).symlink_to((mine / "mine.kv" if is_file else mine) if target == "there" else tmp_path / "nowhere")
    folder = KVFolder("bob")
    for work in (lambda: folder.write("mine", [b"x"]), lambda: folder.read("mine"), lambda: folder.erase("mine")):
        try:
            work()
        except ApiError as error:
            assert error.status == 500 and "kvlab" in error.message or "link" in error.message
    assert (home / name).is_symlink() and not (tmp_path / "nowhere").exists()
    assert [path.read_bytes() for path in (mine / "mine.kv", mine / "bob" / "mine.kv")] == [b"mine", b"mine"]
    assert stat.S_IMODE(mine.stat().st_mode) & 0o055 == 0o055, "its rights too"
