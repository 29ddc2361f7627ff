"""What macOS lacks or does in its own way: vectored reads, the number of buffers a call takes, flushing the drive."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvlab.store import Store
from kvlab.store.ssd import durability, vectored
from tests.store_kit import BLOCK, NS, fetch, opened, payloads, put, sound
from tests.unit.test_store_direct_reads import TOKENS, read_directly

DATA = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)


def buffers(*sizes: int) -> list[memoryview]:
    return [memoryview(bytearray(size)) for size in sizes]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(DATA.tobytes())
    return path


@pytest.fixture(params=["preadv", "no preadv"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no preadv":
        monkeypatch.delattr(os, "preadv")
    return str(request.param)


@pytest.mark.parametrize("limit", [1, 2, 3, 1024])
def test_vectored_read_fills_buffers_in_order_whatever_the_system_takes_at_once(
    file: Path, system: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectored, "MAX_BUFFERS_PER_CALL", limit)
    views = buffers(100, 0, 1, 2000, 899)
    fd = os.open(file, os.O_RDONLY)
    try:
        assert vectored.read(fd, views, 500) == 3000
        assert b"".join(views) == DATA[500:3500].tobytes()
        assert vectored.read(fd, buffers(100, 100), 0) == 200, "the place in the file is that of each call"
        assert vectored.read(fd, buffers(3000, 3000, 3000), 0) == len(DATA), "a file that ends is read to its end"
    finally:
        os.close(fd)


def test_no_call_gets_more_buffers_than_the_system_takes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    real = os.preadv

    def spy(fd: int, views: Sequence[memoryview], offset: int) -> int:
        counts.append(len(views))
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", spy)
    fd = os.open(file, os.O_RDONLY)
    try:
        assert vectored.read(fd, buffers(*[1] * 2500), 0) == 2500
    finally:
        os.close(fd)
    assert sum(counts) == 2500 and max(counts) == vectored.MAX_BUFFERS_PER_CALL


@pytest.mark.parametrize("answer", [ValueError("unrecognized"), OSError("unknown"), -1, 0])
def test_limit_of_buffers_has_a_fallback(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def sysconf(name: str) -> int:
        assert name == "SC_IOV_MAX"
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert vectored.max_buffers() == vectored.FALLBACK_MAX_BUFFERS
    monkeypatch.setattr(os, "sysconf", lambda _: 77)
    assert vectored.max_buffers() == 77


@pytest.mark.parametrize("limit", [5, 1024])
def test_store_reads_and_hands_over_blocks_right(
    tmp_path: Path, system: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectored, "MAX_BUFFERS_PER_CALL", limit)
    with opened(tmp_path) as store:
        put(store, TOKENS)
    with opened(tmp_path) as store:
        live, tokens, miss = read_directly(store)
        assert (tokens, miss, live.taken) == (len(TOKENS), "", [])
        assert fetch(store, TOKENS).tokens == len(TOKENS)


def test_blocks_of_more_arrays_than_one_call_takes_are_read_without_a_copy(tmp_path: Path) -> None:
    arrays = {f"{i}": np.full((2, BLOCK, 4), i, np.float32) for i in range(vectored.MAX_BUFFERS_PER_CALL)}
    tokens = list(range(3 * BLOCK))
    with opened(tmp_path) as store:
        store.put(NS, tokens, 0, [arrays] * 3)
    sink = Sink(arrays, len(tokens))
    with opened(tmp_path) as store:
        match = store.read_into(store.match(NS, tokens), sink)
    assert (match.tokens, sink.taken) == (len(tokens), [])
    assert all((sink.arrays[name][:, : len(tokens)] == i).all() for i, name in enumerate(arrays))


class Sink:
    """A sink that has memory for every array, head by head."""

    def __init__(self, like: dict[str, np.ndarray], tokens: int) -> None:
        self.arrays = {name: np.full((a.shape[0], tokens, *a.shape[2:]), -1, a.dtype) for name, a in like.items()}
        self.taken: list[int] = []

    def take(self, payload: Any, at: int) -> None:
        self.taken.append(at)

    def targets(self, arrays: Sequence[Any], at: int) -> list[memoryview]:
        end = at + arrays[0].shape[1]
        return [head[at:end].reshape(-1).view(np.uint8).data for one in arrays for head in self.arrays[one.name]]


class Drive:
    """Stands for macOS's fcntl and fsync: notes what is flushed, in order; may refuse to flush the drive."""

    F_FULLFSYNC = 51

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, refuses: bool = False) -> None:
        self.calls: list[str] = []
        self.refuses = refuses
        fsync = os.fsync
        monkeypatch.setattr(durability, "fcntl", SimpleNamespace(F_FULLFSYNC=self.F_FULLFSYNC, fcntl=self.fcntl))
        monkeypatch.setattr(durability.os, "fsync", lambda fd: (self.calls.append("fsync"), fsync(fd))[1])

    def fcntl(self, fd: int, command: int) -> int:
        assert command == self.F_FULLFSYNC and os.fstat(fd)
        if self.refuses:
            self.calls.append("refused")
            raise OSError(45, "Operation not supported")
        self.calls.append("full")
        return 0


def filled(store: Store, seed: int) -> int:
    for i in range(6):
        tokens = np.random.default_rng([seed, i]).integers(0, 1000, 4 * BLOCK).tolist()
        store.put(NS, tokens, 0, payloads(tokens))
    return 24


def test_drive_is_flushed_once_a_batch_after_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(monkeypatch)
    with opened(tmp_path, write="snapshot") as store:
        for seed in (1, 2):
            drive.calls.clear()
            blocks = filled(store, seed)
            assert store.flush()
            assert drive.calls.count("full") == 1 and drive.calls[-1] == "full"
            assert drive.calls.count("fsync") >= blocks
        sound(store)


def test_volume_that_refuses_a_full_flush_gets_a_plain_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(monkeypatch, refuses=True)
    with opened(tmp_path, write="snapshot") as store:
        filled(store, 1)
        assert store.flush() and not store.stats()["trouble"]
        assert drive.calls[-2:] == ["refused", "fsync"] and drive.calls.count("refused") == 1


def test_flush_promises_nothing_where_the_drive_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = Drive(monkeypatch, refuses=True)
    with opened(tmp_path, write="snapshot") as store:
        filled(store, 1)

        def fails(fd: int) -> None:
            if "refused" in drive.calls:
                raise OSError(5, "Input/output error")

        monkeypatch.setattr(durability.os, "fsync", fails)
        assert not store.flush()
        assert "Input/output" in store.stats()["trouble"]


def test_system_without_a_full_flush_syncs_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(durability, "fcntl", SimpleNamespace(fcntl=fcntl.fcntl))
    monkeypatch.setattr(durability.os, "fsync", synced.append)
    with opened(tmp_path, write="snapshot") as store:
        blocks = filled(store, 1)
        assert store.flush() and len(synced) > blocks
