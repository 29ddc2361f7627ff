"""Accidents of a remote: no wrong byte, no exception, no lookup that waits for it again and again, and it comes back.

``fetch`` compares every byte that is read with what the tokens' KV must be.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvlab.store import Store
from kvlab.store.remote.sealing import BLOCKS, CHILDREN, ROOT
from kvlab.store.remote.tier import DEFAULT_WAIT_S
from kvlab.store.ssd.tier import SsdConfig
from tests.remote_kit import Proxy, RedisServer, needs_redis, redis_server, shared, until
from tests.store_kit import BLOCK, MB, NS, fetch, payloads, put, sound

pytest.importorskip("redis", reason="the extra `remote` is not installed")
pytestmark = needs_redis

TALKS = [[n * 10_000 + token for token in range(1, 6 * BLOCK + 4)] for n in range(12)]
WAIT_S = 0.5
"""Ten times the default, since tests share their cores with others; what is asserted follows from it."""
BACK_S = 5.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    for name in ("KVLAB_REMOTE_KEY", "KVLAB_REMOTE_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "redis"
    folder.mkdir()
    with redis_server(folder) as server:
        yield server


def filled(server: RedisServer) -> None:
    with shared(server.url) as store:
        for talk in TALKS:
            put(store, talk)
        assert store.flush()


def served_without_remote(store: Store) -> None:
    """The store goes on: what is put is found, what is not there is a miss, and nothing waits for the remote."""
    started = time.monotonic()
    for n in range(40):
        fetch(store, [500_000 + n, *range(2 * BLOCK)])
    took = time.monotonic() - started
    assert took < 20 * WAIT_S, f"40 lookups took {took:.2f} s: the remote was waited for again and again"
    own = list(range(700_000, 700_000 + 3 * BLOCK))
    put(store, own)
    assert fetch(store, own).tokens == len(own)
    sound(store)


def back(store: Store, since: float) -> None:
    """The remote is used again within the time promised."""
    until(store, lambda stats: stats["trouble"] == "")
    assert time.monotonic() - since < BACK_S + WAIT_S
    assert sum(fetch(store, talk).tokens for talk in TALKS[6:]) == sum(map(len, TALKS[6:]))


def test_a_killed_remote_is_done_without_and_used_again_when_it_is_back(server: RedisServer) -> None:
    with shared(server.url, wait_s=WAIT_S) as store:
        for talk in TALKS:
            put(store, talk)
        assert store.flush()
        server.kill()
        served_without_remote(store)
        assert store.stats()["remote_trips"] == 1 and store.stats()["trouble"]
        assert not store.flush(), "a flush promised what the remote did not take"
        server.start()
        since = time.monotonic()
        until(store, lambda stats: stats["trouble"] == "")
        assert time.monotonic() - since < BACK_S + WAIT_S
        more = list(range(900_000, 900_000 + 4 * BLOCK))
        put(store, more)
        assert store.flush()
    with shared(server.url) as store:
        assert fetch(store, more).tokens == len(more)


def test_a_remote_that_hangs_costs_one_wait(server: RedisServer) -> None:
    filled(server)
    with shared(server.url, wait_s=WAIT_S) as store:
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])
        server.signal(signal.SIGSTOP)
        served_without_remote(store)
        assert store.stats()["remote_late"] >= 1 and store.stats()["remote_trips"] == 1
        server.signal(signal.SIGCONT)
        back(store, time.monotonic())


def test_a_remote_that_hangs_between_lookup_and_reading_is_a_shorter_match(server: RedisServer) -> None:
    filled(server)
    with shared(server.url, wait_s=WAIT_S) as store:
        match = store.match(NS, TALKS[0])
        assert match.tokens == len(TALKS[0])
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        got, found = store.read(match)
        assert time.monotonic() - started < 4 * WAIT_S
        assert found.miss == "unreadable" and found.tokens < len(TALKS[0]) and len(got) == len(found.pieces)
        server.signal(signal.SIGCONT)
        back(store, time.monotonic())


def test_a_slow_remote_is_left_alone(server: RedisServer) -> None:
    filled(server)
    proxy = Proxy(server.port, delay_s=WAIT_S)
    with shared(f"redis://127.0.0.1:{proxy.port}", wait_s=WAIT_S) as store:
        served_without_remote(store)
        assert store.stats()["remote_trips"] == 1
        proxy.delay_s = 0.0
        back(store, time.monotonic())
    proxy.close()


def test_a_full_remote_takes_nothing_and_is_read_on(server: RedisServer) -> None:
    filled(server)
    direct = server.direct()
    direct.config_set("maxmemory", 1)
    with shared(server.url, wait_s=WAIT_S) as store:
        for n in range(4):
            put(store, list(range(n * 1000 + 800_000, n * 1000 + 800_000 + 3 * BLOCK)))
        assert not store.flush()
        stats = store.stats()
        assert "maxmemory" in stats["trouble"] and stats["remote_failures"] >= 1 and stats["remote_trips"] == 0
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0]), "what the remote has is read on"
        direct.config_set("maxmemory", 0)
        until(store, lambda stats: stats["trouble"] == "" and not stats["remote_queued_bytes"])


def test_flipped_bits_anywhere_are_misses(server: RedisServer) -> None:
    filled(server)
    direct = server.direct()
    for at, name in enumerate(sorted(direct.keys(f"{BLOCKS}*"))):
        data = bytearray(direct.get(name))
        data[(at * 7919) % len(data)] ^= 1 << at % 8
        direct.set(name, bytes(data))
    for name in direct.keys(f"{CHILDREN}*"):
        for member, value in direct.hgetall(name).items():
            direct.hset(name, member, bytes([value[0] ^ 1]) + value[1:])
    with shared(server.url) as store:
        assert [fetch(store, talk).tokens for talk in TALKS] == [0] * len(TALKS)
        assert store.stats()["misses"]["corrupt"] == len(TALKS)
        talk = TALKS[0]
        for at in range(len(talk) // BLOCK + 1):  # a bad block is known as bad when it is read: one at each request
            assert fetch(store, talk).tokens >= at * BLOCK
            put(store, talk)
        # The tail stays away: its block is there, but nothing names it any more.
        assert fetch(store, talk).tokens == len(talk) // BLOCK * BLOCK


def test_a_wrong_password_is_told_once_and_costs_nothing_more(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    filled(server)
    server.direct().config_set("requirepass", "right")
    monkeypatch.setenv("KVLAB_REMOTE_PASSWORD", "wrong")
    with shared(server.url, wait_s=WAIT_S) as store:
        served_without_remote(store)
        assert "KVLAB_REMOTE_PASSWORD" in store.stats()["trouble"]
    assert caplog.text.count("going on without it") == 1 and "wrong" not in caplog.text.replace("WRONGPASS", "")
    monkeypatch.setenv("KVLAB_REMOTE_PASSWORD", "right")
    with shared(server.url) as store:
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])


def test_foreign_data_under_kvlab_s_names_is_a_miss(server: RedisServer) -> None:
    filled(server)
    direct = server.direct()
    names = sorted(direct.keys(f"{BLOCKS}*"))
    for at, name in enumerate(names):
        direct.delete(name)
        if at % 3 == 0:
            direct.lpush(name, "a list of somebody else")
        elif at % 3 == 1:
            direct.set(name, os.urandom(100))
        else:
            direct.set(name, b"")
    for name in direct.keys(f"{CHILDREN}*"):
        direct.hset(name, "not a key", b"\xff")
        direct.hset(name, "00" * 32, b"\x01\x00\x00\x00")
    direct.set(f"{ROOT}h/nonsense", b"x")
    with shared(server.url) as store:
        assert [fetch(store, talk).tokens for talk in TALKS] == [0] * len(TALKS)
        served_without_remote(store)
        assert store.stats()["remote_trips"] == 0


def test_two_writers_of_one_remote_do_not_disturb_each_other(server: RedisServer, tmp_path: Path) -> None:
    """Both write and read the same talks at the same time; a third store finds all, each block once."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with shared(server.url, SsdConfig(tmp_path / str(number), 16 * MB)) as store:
                for _ in range(3):
                    for talk in TALKS[:: 1 if number else -1]:
                        match = fetch(store, talk)
                        if match.tokens < len(talk):
                            start = match.tokens // BLOCK * BLOCK
                            store.put(NS, talk, start, payloads(talk, start))
                assert store.flush()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    with shared(server.url) as store:
        assert [fetch(store, talk).tokens for talk in TALKS] == [len(talk) for talk in TALKS]
    assert len(server.direct().keys(f"{BLOCKS}*")) == len(TALKS) * -(-len(TALKS[0]) // BLOCK)


def test_the_default_wait_is_fifty_milliseconds() -> None:
    from kvlab.store.remote import RemoteConfig

    assert RemoteConfig("redis://host").wait_s == DEFAULT_WAIT_S == 0.05


def test_a_full_folder_is_done_without(tmp_path: Path) -> None:
    """A remote folder that cannot be written to: what is computed is kept in RAM, and nothing raises."""
    folder = tmp_path / "remote"
    with shared(f"file://{folder}") as store:
        (folder / "kvlab").write_text("a file where the folder should be")
        put(store, TALKS[0])
        assert not store.flush()
        assert fetch(store, TALKS[0]).tokens == len(TALKS[0])
        stats: dict[str, Any] = store.stats()
        assert stats["trouble"] and stats["remote_trips"] >= 1 and stats["remote_bytes_sent"] == 0
