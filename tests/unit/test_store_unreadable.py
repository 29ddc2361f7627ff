"""Sound blocks that cannot be read for a while are misses with a reason, and are there again afterwards.

The class: every error of reading, listing or opening a block but a bad payload or a missing file, at every place that
reads blocks: a request, a checkpoint, verify, repair, and the start of a store with its index, an older one, or none.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kvlab.cli.store import app
from kvlab.store import commands
from kvlab.store.ssd import blockfile, layout, tier, vectored
from tests.store_kit import NS, fetch, opened, put, sound
from tests.store_writer import talk

TALKS = [talk(seed) for seed in range(4)]
NOBODY = 65534

ERRORS: list[BaseException] = [
    *(OSError(getattr(errno, name), os.strerror(getattr(errno, name))) for name in (
        "EACCES", "EPERM", "EMFILE", "ENFILE", "EIO", "ENOMEM", "ESTALE", "EINTR", "EAGAIN", "EBUSY", "ETIMEDOUT",
        "ENXIO", "ENODEV", "ENOTCONN",
    )),
    MemoryError(),
]  # fmt: skip


def named(error: BaseException) -> str:
    return errno.errorcode[error.errno] if isinstance(error, OSError) and error.errno else type(error).__name__


def filled(root: Path) -> Path:
    with opened(root) as store:
        for tokens in TALKS:
            put(store, tokens)
    return root


def block_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "blocks").rglob("*") if path.is_file()}


def value(rows: list[dict[str, Any]], metric: str) -> Any:
    (found,) = [row["value"] for row in rows if row["metric"] == metric]
    return found


def fails_with(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("error", ERRORS, ids=named)
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_block_out_of_reach_is_a_miss_of_its_own_and_served_later(
    tmp_path: Path, error: BaseException, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = block_files(filled(tmp_path))
    with opened(tmp_path) as store:
        with monkeypatch.context() as patch:
            if when == "opening":
                patch.setattr(blockfile, "_open", fails_with(error))
            else:
                patch.setattr(vectored, "read", fails_with(error))
            if when == "reading":
                patch.setattr(blockfile.os, "pread", fails_with(error))
            matches = [fetch(store, tokens) for tokens in TALKS]
            assert [(match.tokens, match.miss) for match in matches] == [(0, "unreadable")] * len(TALKS)
            assert fetch(store, TALKS[0]).miss == "unreadable", "also while it is not tried again"
        stats = store.stats()
        assert stats["unreadable"] == len(TALKS) and stats["corrupt"] == 0 and stats["trouble"] == ""
        assert stats["misses"] == {"unreadable": len(TALKS) + 1}
        monkeypatch.setattr(tier.time, "monotonic", later(tier.RETRY_S))
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)
    assert block_files(tmp_path) == before


def later(seconds: float) -> Callable[[], float]:
    import time

    now = time.monotonic
    return lambda: now() + seconds


def test_checkpoint_out_of_reach_costs_that_checkpoint_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        put(store, TALKS[0])
        store.put_checkpoint(NS, TALKS[0], {"s": np.ones(3)})
        store.put_checkpoint(NS, TALKS[0][:9], {"s": np.ones(1)})
    before = block_files(tmp_path)
    real = blockfile._open
    with opened(tmp_path) as store:
        third = store.match(NS, TALKS[0]).pieces[2].key.hex()

        def fails(path: Any) -> int:
            if str(path).endswith(third):
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(path)

        monkeypatch.setattr(blockfile, "_open", fails)
        got, match = store.read(store.match(NS, TALKS[0], checkpoint=True))
        assert (len(got), match.tokens, match.miss) == (2, 9, "unreadable")
        assert store.read_checkpoint(match) is not None
    assert block_files(tmp_path) == before


@pytest.mark.parametrize("error", ERRORS, ids=named)
def test_verify_lists_what_it_cannot_read_and_deletes_nothing(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = block_files(filled(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(blockfile, "_open", fails_with(error))
        for repair in (False, True):
            rows = commands.verify(tmp_path, repair=repair)
            assert (value(rows, "verified"), value(rows, "corrupt")) == (0, 0)
            assert value(rows, "unreadable") == len(before)
            listed = {Path(row["file"]).name for row in rows if row["metric"] == "unreadable_file" and row["reason"]}
            assert listed == set(before)
            command = ["verify", "--dir", str(tmp_path), *(["--repair"] if repair else [])]
            answer = CliRunner().invoke(app, command)
            assert answer.exit_code == 1 and "unreadable" in answer.output
    assert block_files(tmp_path) == before
    assert value(commands.verify(tmp_path), "verified") == len(before)
    assert value(commands.ls(tmp_path), "quarantined") == 0


@pytest.mark.parametrize("error", ERRORS, ids=named)
@pytest.mark.parametrize("index", ["lost", "older", "left by a crash"])
def test_start_keeps_what_it_cannot_read(
    tmp_path: Path, error: BaseException, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = filled(tmp_path / "store")
    if index == "older":
        shutil.copy(root / "catalog.sqlite", tmp_path)
        with opened(root) as store:
            put(store, talk(9))
        shutil.copy(tmp_path / "catalog.sqlite", root)
    elif index == "lost":
        (root / "catalog.sqlite").unlink()
    else:
        (root / "owners" / f"{'0' * 32}.lock").touch()
    before = block_files(root)
    with monkeypatch.context() as patch:
        patch.setattr(blockfile, "_open", fails_with(error))
        with opened(root) as store:
            assert fetch(store, TALKS[0]).tokens == 0
            sound(store)
    assert block_files(root) == before
    with opened(root) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)


def test_bytes_of_unread_files_count_for_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = filled(tmp_path)
    total = sum(map(len, block_files(root).values()))
    (root / "catalog.sqlite").unlink()
    monkeypatch.setattr(blockfile, "_open", fails_with(PermissionError(errno.EACCES, "Permission denied")))
    with opened(root, ssd=total + 3000) as store:
        before = block_files(root)
        put(store, talk(9))
        store.flush()
        assert sum(map(len, block_files(root).values())) <= total + 3000
        assert before.items() <= block_files(root).items()
    with opened(root, ssd=total // 2):
        assert 0 < sum(map(len, block_files(root).values())) <= total // 2, "a lower budget holds for them too"


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of a user without special rights, who this process is meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="kvlab-rights-"))
    if os.geteuid() != 0:
        yield folder
    else:
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)
    shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["files", "folders", "blocks", "store"])
def test_rights_taken_away_and_given_back_cost_nothing(as_nobody: Path, what: str) -> None:
    root = filled(as_nobody / "store")
    before = block_files(root)
    shards = [path for path in (root / "blocks").iterdir()]
    targets = {
        "files": [path for shard in shards for path in shard.iterdir()],
        "folders": shards,
        "blocks": [root / "blocks"],
        "store": [root],
    }[what]
    modes = {path: path.stat().st_mode for path in targets}
    with opened(root) as store:
        for path in targets:
            path.chmod(0)
        assert [fetch(store, tokens).miss for tokens in TALKS] == ["unreadable"] * len(TALKS)
        assert store.stats()["corrupt"] == 0
    for repair in (False, True):
        command = ["verify", "--dir", str(root), *(["--repair"] if repair else [])]
        assert CliRunner().invoke(app, command).exit_code != 0
    if what != "store":
        with opened(root) as store:
            assert fetch(store, TALKS[0]).tokens == 0
    for path, mode in modes.items():
        path.chmod(mode)
    assert block_files(root) == before
    with opened(root) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]


def test_full_table_of_open_files_costs_nothing(tmp_path: Path) -> None:
    before = block_files(filled(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with opened(tmp_path) as store:
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        try:
            while True:
                try:
                    held.append(os.open(os.devnull, os.O_RDONLY))
                except OSError:
                    break
            assert [fetch(store, tokens).tokens for tokens in TALKS] == [0] * len(TALKS)
            rows_or_error = CliRunner().invoke(app, ["verify", "--dir", str(tmp_path)])
            assert rows_or_error.exit_code != 0
        finally:
            for fd in held:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert store.stats()["corrupt"] == 0
    assert block_files(tmp_path) == before
    with opened(tmp_path) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]


def test_missing_and_bad_files_are_still_corrupt(tmp_path: Path) -> None:
    before = list(block_files(filled(tmp_path)))
    folder = layout.BLOCKS
    (tmp_path / folder / before[0][0] / before[0]).unlink()
    bad = tmp_path / folder / before[1][0] / before[1]
    bad.write_bytes(bad.read_bytes()[:-1] + b"x")
    rows = commands.verify(tmp_path)
    assert (value(rows, "corrupt"), value(rows, "unreadable")) == (2, 0)
    assert len(block_files(tmp_path)) == len(before) - 1
