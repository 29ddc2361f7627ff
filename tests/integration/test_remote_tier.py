"""A remote tier over real services: what one store writes, another one finds, verified; whoever else is there."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvlab.errors import StoreError
from kvlab.store import Namespace
from kvlab.store.remote.client import connect
from kvlab.store.remote.sealing import BLOCKS, ROOT
from kvlab.store.ssd.tier import SsdConfig
from tests.remote_kit import (
    START_S,
    needs_redis,
    redis_server,
    s3_service,
    settled,
    shared,
    until,
)
from tests.store_kit import BLOCK, MB, NS, fetch, payloads, put, rows, same, sound

TALK = list(range(1000, 1000 + 5 * BLOCK + 3))
SECRET = "07" * 32


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    pytest.importorskip("moto", reason="moto, which has an S3 service, is not installed")
    with s3_service() as environment:
        yield environment


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(params=["file", pytest.param("redis", marks=needs_redis), "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A remote without anything in it."""
    pytest.importorskip("obstore" if request.param != "redis" else "redis", reason="the extra `remote` is not there")
    monkeypatch.delenv("KVLAB_REMOTE_KEY", raising=False)
    if request.param == "file":
        yield f"file://{tmp_path}/remote"
    elif request.param == "s3":
        for name, value in request.getfixturevalue("s3").items():
            monkeypatch.setenv(name, value)
        yield f"s3://kvlab-tests/{tmp_path.name}"
    else:
        url = request.getfixturevalue("redis_url")
        empty(url)
        yield url


def empty(url: str) -> None:
    client = connect(url, None)
    client.delete([block.name for block in client.blocks(ROOT)])
    client.close()


def filled(url: str, *talks: list[int], **settings: object) -> None:
    with shared(url, **settings) as store:
        for talk in talks or (TALK,):
            put(store, talk)
        assert store.flush()


@pytest.mark.parametrize("secret", ["", SECRET], ids=["plain", "sealed"])
def test_another_store_finds_to_the_token_what_one_wrote(
    url: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLAB_REMOTE_KEY", secret)
    filled(url)
    with shared(url) as store:
        match = fetch(store, TALK)
        assert (match.tokens, match.miss) == (len(TALK), "") and match.by_tier == {"remote": len(TALK)}
        for shift in (1, BLOCK, 2 * BLOCK + 5):  # other text from there on: the common part of a block counts
            other = [*TALK[:shift], *range(9000, 9000 + BLOCK)]
            match = fetch(store, other)
            assert (match.tokens, match.miss) == (shift, f"diverged_at={shift}")
        assert fetch(store, [*TALK, 5, 6, 7]).tokens == len(TALK)
        assert fetch(store, list(range(20))).miss == "never_seen"
        stats = store.stats()
        assert stats["remote_bytes_received"] > 0 and stats["remote_trips"] == 0 and stats["trouble"] == ""
        sound(store)


def test_a_checkpoint_is_found_by_another_store(url: str) -> None:
    at = TALK[: 3 * BLOCK + 2]
    state = rows(TALK, 0, 4)
    with shared(url) as store:
        put(store, TALK)
        store.put_checkpoint(NS, at, state)
        assert store.flush()
    with shared(url) as store:
        match = store.match(NS, TALK, checkpoint=True)
        assert (match.tokens, match.miss) == (len(at), "no_checkpoint")
        _, match = store.read(match)
        same(store.read_checkpoint(match) or {}, state)


def test_tenants_and_policies_do_not_meet(url: str) -> None:
    filled(url)
    with shared(url) as store:
        assert fetch(store, TALK, replace(NS, tenant="other")).miss == "never_seen"
        lossy = Namespace(NS.model, "quantized:bits=4", NS.dtype, BLOCK)
        assert fetch(store, TALK, lossy).miss == "other_policy"


def test_a_block_goes_to_the_ssd_and_to_the_remote_and_is_read_from_the_nearer(url: str, tmp_path: Path) -> None:
    ssd = SsdConfig(tmp_path / "ssd", 16 * MB)
    with shared(url, ssd) as store:
        put(store, TALK)
        assert store.flush()
    with shared(url, ssd) as store:
        assert fetch(store, TALK).by_tier == {"ssd": len(TALK)}
    with shared(url, SsdConfig(tmp_path / "other", 16 * MB)) as store:
        assert fetch(store, TALK).by_tier == {"remote": len(TALK)}
        stats = store.stats()
        assert stats["bytes_written"] == 0 and stats["remote_bytes_sent"] == 0


def test_a_damaged_block_is_a_miss_is_removed_and_written_anew(url: str) -> None:
    filled(url)
    client = connect(url, None)
    names = sorted(block.name for block in client.blocks(BLOCKS))
    victim = next(name for name in names if client.sizes([name])[name] == max(client.sizes(names).values()))
    data = bytearray(client.read([victim])[victim])
    data[-70] ^= 1
    client.write({victim: bytes(data)})
    gone: list[str] = []
    with shared(url, on_event=lambda kind, fields: gone.append(kind)) as store:
        match = fetch(store, TALK)
        assert match.tokens < len(TALK) and match.miss == "corrupt" and "corrupt" in gone
        until(store, lambda _: not client.sizes([victim]))
        put(store, TALK)  # what is missing is computed and stored again
        assert store.flush()
    with shared(url) as store:
        assert fetch(store, TALK).tokens == len(TALK)
    client.close()


def test_a_block_under_the_name_of_another_is_a_miss(url: str) -> None:
    filled(url)
    client = connect(url, None)
    first, second, *_ = sorted(block.name for block in client.blocks(BLOCKS))
    client.write({first: client.read([second])[second]})
    client.close()
    with shared(url) as store:
        assert fetch(store, TALK).miss == "corrupt"  # and what was read before it is right: `fetch` compares all


@pytest.mark.parametrize("reader", ["", "08" * 32], ids=["without", "another"])
def test_a_reader_without_the_key_has_misses_and_no_content(
    url: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVLAB_REMOTE_KEY", SECRET)
    filled(url)
    client = connect(url, None)
    everything = b"".join(client.read([block.name for block in client.blocks(BLOCKS)]).values())
    for plain in (b"KVLABBLK", b'"tokens"', NS.model.encode(), payloads(TALK)[0]["0.k"].tobytes()[:32]):
        assert plain not in everything
    monkeypatch.setenv("KVLAB_REMOTE_KEY", reader)
    before = len(list(client.blocks(BLOCKS)))
    with shared(url) as store:
        match = fetch(store, TALK)
        assert (match.tokens, match.miss) == (0, "never_seen")
        assert store.stats()["remote_bytes_received"] == 0
    assert len(list(client.blocks(BLOCKS))) == before, "a reader without the key removed something"
    client.close()
    monkeypatch.setenv("KVLAB_REMOTE_KEY", SECRET)
    with shared(url) as store:
        assert fetch(store, TALK).tokens == len(TALK)


def test_the_budget_holds_and_chains_stay_whole(url: str) -> None:
    client = connect(url, None)
    filled(url)
    talk = sum(block.nbytes for block in client.blocks(BLOCKS))
    talks = [[n * 100_000 + token for token in TALK] for n in range(8)]
    with shared(url, budget=3 * talk) as store:
        for one in talks:
            put(store, one)
            assert store.flush()
            settled(store)
    left = sum(block.nbytes for block in client.blocks(BLOCKS))
    assert 0 < left <= 3 * talk + talk // 2
    client.close()
    with shared(url) as store:
        found = [fetch(store, one).tokens for one in (TALK, *talks)]
    assert sum(found) > 0 and 0 in found


def test_a_block_beyond_its_time_to_live_is_a_miss(url: str) -> None:
    filled(url, ttl_s=0.2)
    with shared(url, ttl_s=0.2) as store:
        until(store, lambda _: store.stored(NS, TALK) == 0)
        assert fetch(store, TALK).tokens == 0
    with shared(url, ttl_s=3600.0) as store:
        put(store, TALK)
        assert store.flush() and fetch(store, TALK).tokens == len(TALK)


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
def test_a_clock_that_is_wrong_ends_no_block_s_life(
    ahead_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ages in an object store are told by its own clock."""
    module = pytest.importorskip("kvlab.store.remote.object_client", reason="the extra `remote` is not installed")
    url = f"file://{tmp_path}/remote"
    filled(url, ttl_s=3600.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: time.time() + ahead_s))
    with shared(url, ttl_s=3600.0) as store:
        assert fetch(store, TALK).tokens == len(TALK)
    for file in (tmp_path / "remote" / BLOCKS).iterdir():
        os.utime(file, (time.time() - 4000,) * 2)
    with shared(url, ttl_s=3600.0) as store:
        assert fetch(store, TALK).tokens == 0


@pytest.mark.parametrize("days", [-400, 400])
def test_a_machine_whose_clock_is_wrong_keeps_lives_and_budget(
    url: str, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lives and idle times are spans of the service's own clock; no time of a client goes to it."""
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + days * 86_400)
    filled(url, ttl_s=3600.0)
    with shared(url, ttl_s=3600.0) as store:
        assert fetch(store, TALK).tokens == len(TALK)
    client = connect(url, None)
    kept = list(client.blocks(BLOCKS))
    assert kept and max(block.unused_s for block in kept) < 600.0
    size = sum(block.nbytes for block in kept)
    with shared(url, ttl_s=3600.0, budget=3 * size) as store:
        for n in range(1, 6):
            put(store, [n * 100_000 + token for token in TALK])
            assert store.flush()
            settled(store)
    assert 0 < sum(block.nbytes for block in client.blocks(BLOCKS)) <= 3 * size + size // 2
    client.close()


@needs_redis
def test_data_that_nobody_asked_for_ends_a_connection(redis_url: str) -> None:
    """It would be taken for the answer to the next command."""
    pytest.importorskip("redis", reason="the extra `remote` is not installed")
    client = connect(redis_url, None)
    client.write({"kvlab-test": b"the right one"})
    (connection,) = client._redis.connection_pool._available_connections  # type: ignore[attr-defined]
    connection.send_command("PING")
    assert select.select([connection._sock], [], [], START_S)[0] and connection.can_read()
    assert client.read(["kvlab-test"]) == {"kvlab-test": b"the right one"}
    client.delete(["kvlab-test"])
    client.close()


@needs_redis
def test_reading_renews_the_time_to_live_in_redis(redis_url: str) -> None:
    pytest.importorskip("redis", reason="the extra `remote` is not installed")
    empty(redis_url)
    filled(redis_url, ttl_s=100.0)
    client = connect(redis_url, None)
    left = {block.name: client._redis.pttl(block.name) for block in client.blocks(BLOCKS)}  # type: ignore[attr-defined]
    with shared(redis_url, ttl_s=1000.0) as store:
        assert fetch(store, TALK).tokens == len(TALK)
        store.flush()
        until(store, lambda _: all(client._redis.pttl(name) > 200_000 for name in left))  # type: ignore[attr-defined]
    assert left and max(left.values()) <= 100_000
    client.close()


def test_an_unusable_setting_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used"):
        shared(f"file://{tmp_path}/file/below")
