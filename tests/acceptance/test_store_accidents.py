"""Accidents, none of which may ever serve a wrong byte or raise into the caller.

``pytest -m soak tests/acceptance/test_store_accidents.py`` runs ten times as many of each; ``-rP`` shows the counts.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvlab.errors import StoreError
from kvlab.store import keys as k
from kvlab.store.ssd import blockfile, tier
from tests.soaking import times
from tests.store_kit import MB, NS, fetch, opened, put, sound
from tests.store_writer import arguments, talk

ROOT = Path(__file__).parents[2]
TALKS = [talk(seed) for seed in range(8)]


def filled(path: Path) -> list[Path]:
    """A store on disk; its block files."""
    with opened(path) as store:
        for tokens in TALKS:
            put(store, tokens)
    return [file for file in sorted((path / "blocks").rglob("*")) if file.is_file()]


def start(path: Path, seed: int, write: str, ssd: int = 1 << 30) -> subprocess.Popen[str]:
    return subprocess.Popen(arguments(path, seed, write, ssd), stdout=subprocess.PIPE, text=True, cwd=ROOT)


def kill(process: subprocess.Popen[str]) -> list[int]:
    """Kill -9; the seeds whose flush had returned."""
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL
    return [int(line) for line in out.splitlines() if line.strip()]


@times(5)
def test_killed_writers_lose_nothing_acknowledged(tmp_path: Path, count: int) -> None:
    rng = random.Random(0)
    acknowledged: list[int] = []
    for round_ in range(count):
        writers = [start(tmp_path, 1000 * (2 * round_ + i) + 1, ("back", "through")[i]) for i in range(2)]
        for writer in writers:  # past the imports
            assert writer.stdout is not None
            acknowledged.append(int(writer.stdout.readline()))
        time.sleep(rng.random() * 0.3)
        for writer in writers:
            acknowledged += kill(writer)
        with opened(tmp_path, ssd=1 << 30) as store:
            sound(store)
            assert not list((tmp_path / "tmp").iterdir())
            for seed in acknowledged if round_ % 5 == 4 else acknowledged[-40:]:
                match = fetch(store, talk(seed))
                assert (match.tokens, match.miss) == (len(talk(seed)), ""), seed
    print(f"{2 * count} kills, {len(acknowledged)} acknowledged conversations, all served")


@times(2)
def test_killed_writers_leave_a_sound_folder_within_a_small_budget(tmp_path: Path, count: int) -> None:
    rng = random.Random(3)
    budget = 100_000
    for round_ in range(count):
        writers = [start(tmp_path, 1000 * i + 100 * round_ + 1, ("back", "through")[i], budget) for i in range(2)]
        for writer in writers:  # past the imports
            assert writer.stdout is not None
            writer.stdout.readline()
        time.sleep(0.2 + rng.random() * 0.3)
        last = [seed for writer in writers for seed in kill(writer)[-10:]]  # of both: one may have waited for long
        with opened(tmp_path, ssd=budget) as store:
            sound(store)
            assert 0 < store.tiers_bytes()["ssd"] <= budget
            assert sum(fetch(store, talk(seed)).tokens for seed in last) > 0


def test_row_without_a_file_is_forgotten_after_a_crash(tmp_path: Path) -> None:
    files = filled(tmp_path)
    files[0].unlink()  # killed in the middle of an eviction
    os.truncate(files[1], 100)  # or a power cut
    (tmp_path / "owners" / f"{'0' * 32}.lock").touch()
    with opened(tmp_path) as store:
        sound(store)
        for tokens in TALKS:
            fetch(store, tokens)
        assert store.stats()["corrupt"] == 0


def test_damaged_index_is_rebuilt_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path)
    monkeypatch.setattr(tier, "RETRY_S", 0.0)
    with opened(tmp_path) as store:
        db = sqlite3.connect(tmp_path / "catalog.sqlite")
        db.execute("DROP TABLE blocks")
        db.execute("CREATE TABLE blocks (id, key, owner, parent, tokens, kind)")  # selects fail, or find nothing
        db.execute("UPDATE sums SET value = 'x'")
        db.commit()
        db.close()
        assert fetch(store, TALKS[0]).tokens == 0
        store._tiers[0]._fail(sqlite3.IntegrityError("as a damaged page would cause"))  # type: ignore[attr-defined]
        store.flush()
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)
    assert not (tmp_path / "catalog.suspect").exists()


@times(50)
def test_flipped_bits_are_never_served(tmp_path: Path, count: int) -> None:
    rng = random.Random(1)
    files = filled(tmp_path)
    names = {file.name: file for file in files}
    for _ in range(count):
        path = rng.choice(files)
        good = path.read_bytes()
        at = rng.randrange(8 * len(good))
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        path.write_bytes(bad)
        with opened(tmp_path) as store:
            matches = [fetch(store, tokens) for tokens in TALKS]
            hurt = [match for match in matches if match.miss == "corrupt"]
            assert hurt and store.stats()["corrupt"] == 1
            assert not path.exists()
            assert any(old.name.endswith(path.name) for old in (tmp_path / "quarantine").iterdir())
            assert all(fetch(store, tokens).miss in ("", "corrupt") for tokens in TALKS)
            assert store.stats()["corrupt"] == 1  # the second time it is not even tried
            for tokens in TALKS:
                put(store, tokens)
        assert path.exists()  # computed again and stored again
    assert set(names) == {file.name for file in (tmp_path / "blocks").rglob("*") if file.is_file()}
    with opened(tmp_path) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)


@times(15)
def test_flipped_bits_in_the_index_are_never_served(
    tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(2)
    filled(tmp_path / "good")
    served = 0
    for i in range(count):
        path = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", path)
        index = path / "catalog.sqlite"
        data = bytearray(index.read_bytes())
        for _ in range(rng.choice([1, 20])):
            at = rng.randrange(8 * len(data))
            data[at // 8] ^= 1 << at % 8
        index.write_bytes(data)
        for _ in range(2):  # damage met in use is repaired by the next start
            with opened(path) as store:
                served += sum(fetch(store, tokens).tokens for tokens in TALKS)
                for tokens in TALKS:
                    put(store, tokens)
                store.flush()
        shutil.rmtree(path)
    assert served


@pytest.mark.parametrize("accident", ["truncated", "emptied", "longer", "deleted", "foreign", "older", "swapped"])
def test_bad_files_are_misses(tmp_path: Path, accident: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = filled(tmp_path)
    path, other = files[3], files[4]
    good = path.read_bytes()
    if accident == "truncated":
        path.write_bytes(good[:-1])
    elif accident == "emptied":
        path.write_bytes(b"")
    elif accident == "longer":
        path.write_bytes(good + b"\0")
    elif accident == "deleted":
        path.unlink()
    elif accident == "foreign":
        path.write_bytes(b"{}" * 1000)
    elif accident == "older":
        block = blockfile.read(path, bytes.fromhex(path.name))
        monkeypatch.setattr("kvlab.store.keys.FORMAT", 0)
        path.write_bytes(b"".join(blockfile.encode(block)))  # sound, but in a format of the past
        monkeypatch.undo()
    else:
        path.write_bytes(other.read_bytes())
    with opened(tmp_path) as store:
        matches = [fetch(store, tokens) for tokens in TALKS]
        assert [match.miss for match in matches].count("corrupt") >= 1
        assert store.stats()["corrupt"] == 1
        for tokens in TALKS:
            put(store, tokens)
        assert store.flush()
        sound(store)
    with opened(tmp_path) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]


def test_folder_of_an_older_format_is_a_miss_and_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("keys", "ssd.index"):
        monkeypatch.setattr(f"kvlab.store.{name}.FORMAT", k.FORMAT - 1)
    filled(tmp_path)
    monkeypatch.undo()
    with opened(tmp_path) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [0] * len(TALKS)
        for tokens in TALKS:
            put(store, tokens)
        assert store.flush()
        sound(store)
    assert "older format" in caplog.text
    with opened(tmp_path) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]


def test_lost_index_is_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{tmp_path / 'catalog.sqlite'}{suffix}").unlink(missing_ok=True)
    (tmp_path / "blocks" / "0" / "stray").write_bytes(b"stray")
    with opened(tmp_path) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)
    (tmp_path / "catalog.sqlite").write_bytes(b"not a database" * 1000)
    with opened(tmp_path) as store:
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)
    assert len(caplog.records) == 1 and "rebuilt" in caplog.text


def test_newer_index_is_left_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    db = sqlite3.connect(tmp_path / "catalog.sqlite")
    db.execute(f"PRAGMA application_id={db.execute('PRAGMA application_id').fetchone()[0] + 1}")
    db.execute(f"PRAGMA user_version={db.execute('PRAGMA user_version').fetchone()[0] + 1}")
    db.close()
    with pytest.raises(StoreError, match="newer kvlab"):
        opened(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False
    ) if shutil.which("mount") else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_costs_hits_only(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier, "RETRY_S", 0.0)
    talks = [talk(seed) for seed in range(0, 300, 5)]
    with opened(small_disk / "store", ssd=64 * MB, ram=64 * MB) as store:
        for tokens in talks:
            put(store, tokens)
            store.flush()
        assert store.stats()["failures"] > 0
        assert [fetch(store, tokens).tokens for tokens in talks] == [len(tokens) for tokens in talks]
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    with opened(small_disk / "store", ssd=64 * MB) as store:
        assert sum(fetch(store, tokens).tokens for tokens in talks) > 0
    with opened(small_disk / "store", ssd=200_000) as store:  # a budget below the disk's size frees space again
        put(store, talks[-1])
        store.flush()
        assert store.flush(), store.stats()["trouble"]
        sound(store)
        assert fetch(store, talks[-1]).tokens == len(talks[-1])


def test_read_only_folder_costs_hits_only(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(small_disk / "store")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with opened(small_disk / "store") as store:
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])
        put(store, talk(77))
        assert not store.flush()
        assert fetch(store, talk(77)).by_tier == {"ram": len(talk(77))}
    assert len(caplog.records) == 1


def test_bad_blocks_that_cannot_be_set_aside_are_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    files = filled(tmp_path)
    with opened(tmp_path) as store:
        store.put_checkpoint(NS, TALKS[0], {"s": np.ones(3)})
        store.put_checkpoint(NS, TALKS[0][:9], {"s": np.ones(1)})
    monkeypatch.setattr(tier.StoreFolder, "_open", fails)
    with opened(tmp_path) as store:
        bad = store.match(NS, TALKS[0]).pieces[2].key.hex()
        path = next(file for file in files if file.name == bad)
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        got, match = store.read(store.match(NS, TALKS[0], checkpoint=True))
        assert (len(got), match.tokens, match.miss) == (2, 9, "evicted")
        assert store.read_checkpoint(match) is not None
        assert fetch(store, TALKS[0]).tokens == 16
    assert len(caplog.records) == 1


def test_disk_failing_under_a_store_costs_hits_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    filled(tmp_path)
    with opened(tmp_path) as store:
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])
        monkeypatch.setattr(blockfile, "write", fails)
        new = talk(77)
        put(store, new)
        assert not store.flush()
        assert fetch(store, new).tokens == len(new)
        assert [fetch(store, tokens).tokens for tokens in TALKS] == [len(tokens) for tokens in TALKS]
        sound(store)
        monkeypatch.undo()
        store._tiers[0]._retry_at = 0.0  # type: ignore[attr-defined]
        assert store.flush()
    assert len(caplog.records) == 1
    with opened(tmp_path) as store:
        assert fetch(store, talk(77)).tokens == len(talk(77))


def test_deleted_folder_costs_hits_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    filled(path)
    with opened(path) as store:
        fetch(store, TALKS[0])
        held = store.match(NS, TALKS[1])
        assert held.by_tier == {"ssd": len(TALKS[1])}
        shutil.rmtree(path)
        got, match = store.read(held)
        assert (got, match.tokens, match.miss) == ([], 0, "evicted")
        put(store, TALKS[1])
        assert not store.flush()
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])
        assert fetch(store, TALKS[1]).tokens == len(TALKS[1])
        assert len(caplog.records) == 1
        monkeypatch.setattr(tier, "RETRY_S", 0.0)
        store._tiers[0]._retry_at = 0.0  # type: ignore[attr-defined]
        put(store, TALKS[2])
        assert store.flush()  # a while later a new folder is made
    with opened(path) as store:
        assert fetch(store, TALKS[2]).tokens == len(TALKS[2])


def test_processes_share_one_budget(tmp_path: Path) -> None:
    budget = 200_000
    script = (
        "import sys; from pathlib import Path; from tests.store_kit import *; from tests.store_writer import talk\n"
        "seed = int(sys.argv[2])\n"
        f"with opened(Path(sys.argv[1]), ssd={budget}, ram=20_000) as store:\n"
        "    for i in range(60):\n"
        "        tokens = talk(seed * (i % 2) + i)\n"  # every other one is common to all processes
        "        put(store, tokens, fetch(store, tokens).tokens // 8 * 8)\n"
        "    assert store.stats()['trouble'] == '', store.stats()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(1000 * i)], cwd=ROOT) for i in range(1, 4)
    ]
    most = 0
    while any(process.poll() is None for process in processes):
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(0.01)
        written = [*(tmp_path / "blocks").rglob("*"), *(tmp_path / "tmp").rglob("*")]
        most = max(most, sum(file.stat().st_size for file in written if file.is_file()))
        for process in processes:
            process.send_signal(signal.SIGCONT)
        time.sleep(0.02)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert 0 < most <= budget
    with opened(tmp_path, ssd=budget) as store:
        sound(store)
        for i in range(60):
            fetch(store, talk(i))


def test_open_store_sweeps_only_what_the_dead_left(tmp_path: Path) -> None:
    with opened(tmp_path) as one:
        put(one, TALKS[0])
        one.flush()
        dead = "0" * 32
        (tmp_path / "tmp" / f"{dead}-1").write_bytes(b"half a file")
        (tmp_path / "owners" / f"{dead}.lock").touch()
        db = sqlite3.connect(tmp_path / "catalog.sqlite")
        db.execute("UPDATE blocks SET owner = ? WHERE id = (SELECT max(id) FROM blocks)", (dead,))
        db.commit()
        db.close()
        living = Path(tmp_path / "tmp" / f"{one._tiers[0]._folder.owner.name}-1")  # type: ignore[attr-defined]
        living.write_bytes(b"being written")
        with opened(tmp_path) as two:
            assert [file.name for file in (tmp_path / "tmp").iterdir()] == [living.name]
            assert fetch(two, TALKS[0]).tokens == len(TALKS[0]), "a complete file is kept, whoever wrote it"
            sound(two)
        living.unlink()
