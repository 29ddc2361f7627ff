"""The parts of the remote tier: URLs, sealing, bytes of blocks, the circuit, reading ahead, sending, pruning."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.errors import StoreError
from kvlab.store import keys as k
from kvlab.store.blocks import cut_blocks, plan
from kvlab.store.remote import RemoteConfig
from kvlab.store.remote.block_bytes import BadBlock, decode, encode
from kvlab.store.remote.bounded_calls import BoundedCalls
from kvlab.store.remote.budget import remove_surplus
from kvlab.store.remote.circuit import Circuit
from kvlab.store.remote.client import StoredBlock
from kvlab.store.remote.errors import RemoteDown, RemoteFull
from kvlab.store.remote.read_ahead import AHEAD_BYTES, BATCH_BYTES, ReadAhead
from kvlab.store.remote.sealing import (
    BLOCKS,
    CHILDREN,
    SEAL_OFFSET,
    OtherSecret,
    Sealed,
    Unsealed,
    sealing_from_environment,
)
from kvlab.store.remote.uploader import Upload, Uploader
from kvlab.store.ssd import blockfile
from tests.store_kit import NS, payloads, same

TOKENS = list(range(100, 120))
SECRET, OTHER = bytes(range(32)), bytes(range(1, 33))


def blocks() -> list:
    return cut_blocks(NS, plan(NS, k.as_tokens(TOKENS), 0, payloads(TOKENS), None))


# -- URLs and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["redis://host", "redis://me@host:6379/2", "rediss://host", "s3://b/p", "gs://b", "az://c/p", "file:///a"]
)
def test_urls_of_known_services_are_taken(url: str) -> None:
    assert RemoteConfig(url).name == "remote"


@pytest.mark.parametrize("url", ["", "host:6379", "http://host", "redis://", "s3:///path", "file://", "file:///"])
def test_other_urls_are_refused_with_the_forms_that_work(url: str) -> None:
    with pytest.raises(StoreError, match=r"redis://host:6379/0.*file:///folder"):
        RemoteConfig(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(StoreError, match="KVLAB_REMOTE_PASSWORD") as caught:
        RemoteConfig("redis://me:hunter2@host/0")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"ttl_s": 0}, "time to live"), ({"budget": 0}, "budget"), ({"wait_s": 0}, "wait"), ({"queue_bytes": 0}, "queue")],
)
def test_impossible_settings_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(StoreError, match=says):
        RemoteConfig("redis://host", **settings)


# -- bytes and sealing --------------------------------------------------------------------------------------------


def test_a_block_in_memory_is_the_content_of_its_file(tmp_path: Path) -> None:
    for block in blocks():
        data = encode(block)
        path = tmp_path / block.key.hex()
        path.write_bytes(data)
        from_file, from_memory = blockfile.read(path, block.key), decode(data, block.key)
        same(from_memory.payload, block.payload)
        same(from_file.payload, from_memory.payload)
        assert decode(data).key == block.key and from_memory.tokens == block.tokens
        assert not any(array.flags.writeable for array in from_memory.payload.values())


@given(st.data())
def test_no_changed_byte_and_no_cut_passes_the_checks(data: st.DataObject) -> None:
    block = blocks()[0]
    whole = bytearray(encode(block))
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = bytes(whole[:at])
    whole[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(whole), cut):
        with pytest.raises(BadBlock):
            decode(bad, block.key)


def test_a_sound_block_under_another_key_is_refused() -> None:
    first, second, *_ = blocks()
    with pytest.raises(BadBlock, match="another block"):
        decode(encode(first), second.key)


@given(st.binary(max_size=200), st.text(max_size=20))
def test_sealed_bytes_come_back_and_show_nothing(data: bytes, name: str) -> None:
    sealing = Sealed(SECRET)
    sealed = sealing.seal(name, data)
    assert sealing.open(name, sealed) == data
    assert len(data) < 8 or data not in sealed[SEAL_OFFSET:]
    assert sealing.seal(name, data) != sealed, "a nonce was used twice"


@given(st.data())
def test_sealed_bytes_that_were_changed_or_moved_are_refused(data: st.DataObject) -> None:
    sealing = Sealed(SECRET)
    sealed = bytearray(sealing.seal("name", b"content"))
    with pytest.raises(BadBlock):
        sealing.open("other name", bytes(sealed))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadBlock):
        sealing.open("name", bytes(sealed))
    with pytest.raises(BadBlock):
        sealing.open("name", bytes(sealed[: data.draw(st.integers(0, len(sealed) - 1))]))


def test_names_and_bytes_of_another_secret_are_told_apart() -> None:
    mine, other, none = Sealed(SECRET), Sealed(OTHER), Unsealed()
    key = blocks()[0].key
    assert len({one.name(BLOCKS, key) for one in (mine, other, none)}) == 3
    assert mine.name(BLOCKS, key)[len(BLOCKS) :] != mine.name(CHILDREN, key)[len(CHILDREN) :]
    sealed = mine.seal("name", b"content")
    for reader in (other, none):
        with pytest.raises(OtherSecret):
            reader.open("name", sealed)
    with pytest.raises(BadBlock, match="not encrypted"):
        mine.open("name", b"x" * SEAL_OFFSET)


def test_the_secret_comes_from_the_environment_in_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVLAB_REMOTE_KEY", raising=False)
    assert not sealing_from_environment().is_secret
    monkeypatch.setenv("KVLAB_REMOTE_KEY", SECRET.hex())
    assert sealing_from_environment().name(BLOCKS, b"k") == Sealed(SECRET).name(BLOCKS, b"k")
    for wrong in ("hunter2", SECRET.hex()[1:], "g" * 64):
        monkeypatch.setenv("KVLAB_REMOTE_KEY", wrong)
        with pytest.raises(StoreError, match="64 hexadecimal digits") as caught:
            sealing_from_environment()
        assert wrong not in str(caught.value)


# -- waiting ------------------------------------------------------------------------------------------------------


class Pings:
    """Fails until it is told to answer; says when it did."""

    def __init__(self) -> None:
        self.works, self.back = False, threading.Event()

    def __call__(self) -> None:
        if not self.works:
            raise RemoteDown("no route")

    def circuit(self) -> Circuit:
        return Circuit("a remote", self, 30.0, self.back.set)


def test_a_circuit_opens_at_a_failure_and_closes_when_the_remote_answers() -> None:
    pings = Pings()
    circuit = pings.circuit()
    circuit.trip("it is gone")
    circuit.trip("again")
    assert circuit.is_open and circuit.trips == 1 and circuit.trouble
    pings.works = True
    assert pings.back.wait(30)
    assert not circuit.is_open and circuit.trouble == ""
    circuit.end()


def test_a_remote_that_answers_too_late_stays_out() -> None:
    asked = threading.Semaphore(0)

    def slow() -> None:
        time.sleep(0.02)
        asked.release()

    circuit = Circuit("a remote", slow, 0.001, lambda: None)
    circuit.trip("late")
    for _ in range(4):  # two looks, of two pings each
        assert asked.acquire(timeout=30)
    assert circuit.is_open
    circuit.end()


def test_a_question_without_an_answer_opens_the_circuit_and_the_next_ones_are_not_asked() -> None:
    pings, asked, release = Pings(), list[int](), threading.Event()
    circuit = pings.circuit()
    calls = BoundedCalls(circuit, 0.05)

    def hang() -> int:
        asked.append(1)
        release.wait(30)
        return 1

    assert calls.ask(hang, otherwise=0) == 0
    assert circuit.is_open and calls.late == 1
    assert calls.ask(hang, otherwise=0) == 0 and len(asked) == 1
    release.set()
    circuit.end()
    calls.close()


def test_questions_of_one_lookup_share_its_time() -> None:
    """The second one has what the first left; that it is late says nothing of the remote."""
    pings = Pings()
    calls = BoundedCalls(pings.circuit(), 0.2)

    def answer_after(seconds: float) -> int:
        time.sleep(seconds)
        return 1

    started = time.monotonic()
    found = [calls.ask(answer_after, 0.15, otherwise=0) for _ in range(8)]
    assert time.monotonic() - started < 8 * 0.15, "each question had the whole time"
    assert 0 in found and not calls._circuit.is_open
    calls.close()


def test_each_lookup_has_the_whole_time_however_close_it_follows() -> None:
    calls = BoundedCalls(Pings().circuit(), 1.0)

    def answer() -> int:
        time.sleep(0.05)
        return 1

    assert [calls.ask(answer, otherwise=0, begins=True) for _ in range(30)] == [1] * 30
    assert calls.late == 0
    calls.close()


def test_a_remote_that_cannot_be_reached_is_left_alone_from_the_start() -> None:
    circuit = Pings().circuit()
    calls = BoundedCalls(circuit, 30.0)
    calls.connect(Pings())
    assert circuit.is_open and circuit.trips == 1
    circuit.end()
    calls.close()


# -- reading ahead ------------------------------------------------------------------------------------------------


class Requests:
    """Records what was asked for; answers at once."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> Future[dict[str, bytes]]:
        self.asked.append(list(names))
        done: Future[dict[str, bytes]] = Future()
        done.set_result({name: name.encode() for name in names})
        return done


@given(st.lists(st.integers(1, 3 * BATCH_BYTES), min_size=1, max_size=60), st.integers(0, 10))
def test_a_chain_is_read_once_in_bounded_memory(sizes: list[int], start: int) -> None:
    requests = Requests()
    ahead = ReadAhead(requests)
    chain = [(f"b{i}", size) for i, size in enumerate(sizes)]
    ahead.found(chain)
    for name, _ in chain[start:]:
        assert ahead.take(name).batch.result()[name] == name.encode()
        assert ahead.held_bytes <= AHEAD_BYTES + max(BATCH_BYTES, *sizes)
    asked = [name for batch in requests.asked for name in batch]
    assert asked == [name for name, _ in chain[start:]]
    assert ahead.held_bytes == 0
    for batch in requests.asked:
        assert len(batch) == 1 or sum(size for name, size in chain if name in batch) <= BATCH_BYTES


def test_a_block_of_no_chain_is_read_alone_and_a_second_reading_asks_again() -> None:
    requests = Requests()
    ahead = ReadAhead(requests)
    for _ in range(2):
        assert ahead.take("x").batch.result() == {"x": b"x"}
    assert requests.asked == [["x"], ["x"]]


def test_a_child_that_was_found_apart_is_read_with_the_chain_before_it() -> None:
    requests = Requests()
    ahead = ReadAhead(requests)
    ahead.found([("a", 10), ("b", 10)])
    ahead.found([("other", 10), ("tail", 10)])  # the children of b that a lookup looked at
    ahead.follows("b", "tail")
    for name in ("a", "b", "tail"):
        assert ahead.take(name).batch.result()[name] == name.encode()
    assert requests.asked == [["a", "b", "tail"]] and ahead.held_bytes == 0


@pytest.mark.parametrize(("parent", "child"), [("a", "tail"), ("b", "unknown"), ("unknown", "tail")])
def test_a_child_of_another_place_is_read_alone(parent: str, child: str) -> None:
    requests = Requests()
    ahead = ReadAhead(requests)
    ahead.found([("a", 10), ("b", 10)])
    ahead.found([("tail", 10)])
    ahead.follows(parent, child)
    for name in ("a", "b", child):
        ahead.take(name)
    assert requests.asked == [["a", "b"], [child]]


def test_what_an_unfinished_restore_left_makes_room() -> None:
    requests = Requests()
    ahead = ReadAhead(requests)
    size = BATCH_BYTES
    ahead.found([(f"a{i}", size) for i in range(20)])
    ahead.found([(f"b{i}", size) for i in range(20)])
    ahead.take("a0")
    for i in range(20):
        ahead.take(f"b{i}")
        assert ahead.held_bytes <= 2 * AHEAD_BYTES
    assert ahead.held_bytes <= AHEAD_BYTES


# -- a client of this process ---------------------------------------------------------------------------------------


class MemoryClient:
    """A remote in a dictionary, which can be told to fail."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.collections: dict[str, dict[str, bytes]] = {}
        self.unused: dict[str, float] = {}
        self.error: Exception | None = None

    def write(self, values: Mapping[str, bytes]) -> None:
        if self.error is not None:
            raise self.error
        self.values |= values

    def add(self, collection: str, member: str, value: bytes) -> None:
        self.collections.setdefault(collection, {})[member] = value

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self.values.pop(name, None)

    def remove(self, collection: str, members: Sequence[str]) -> None:
        for member in members:
            self.collections[collection].pop(member)

    def touch(self, names: Sequence[str]) -> None: ...

    def blocks(self, folder: str) -> Iterator[StoredBlock]:
        for name, value in self.values.items():
            yield StoredBlock(name, len(value), self.unused.get(name, 0.0))

    def links(self, folder: str) -> Iterator[tuple[str, str]]:
        for collection, members in self.collections.items():
            if collection.startswith(folder):
                yield from ((collection, member) for member in members)


def upload(name: str, nbytes: int = 10, parent: str = "root") -> Upload:
    return Upload(name.encode(), BLOCKS + name, bytes(nbytes), CHILDREN + parent, name, b"tokens")


def uploader(client: MemoryClient, max_bytes: int = 100) -> tuple[Uploader, Circuit]:
    circuit = Pings().circuit()
    return Uploader(client, circuit, max_bytes, lambda blocks, sent: None), circuit  # type: ignore[arg-type]


def test_what_is_queued_is_sent_and_named_by_its_parent() -> None:
    client = MemoryClient()
    uploads, circuit = uploader(client)
    assert uploads.add(upload("a")) and uploads.add(upload("b", parent="a"))
    assert uploads.drain(30)
    assert set(client.values) == {BLOCKS + "a", BLOCKS + "b"} and uploads.queued_bytes == 0
    assert client.collections == {CHILDREN + "root": {"a": b"tokens"}, CHILDREN + "a": {"b": b"tokens"}}
    uploads.stop()
    circuit.end()


def test_the_queue_holds_so_many_bytes_and_serves_them_meanwhile() -> None:
    client = MemoryClient()
    client.error = RemoteFull("no space")
    uploads, circuit = uploader(client, max_bytes=25)
    assert uploads.add(upload("a"))
    while uploads.takes:  # until the first attempt has failed
        time.sleep(0.001)
    assert not uploads.add(upload("b")), "a full remote was offered more"
    assert uploads.pending(BLOCKS + "a") is not None and uploads.queued_bytes == 10
    assert not uploads.drain(30) and uploads.full == "no space" and not circuit.is_open
    uploads._full_until = 0.0
    assert uploads.add(upload("b"))
    assert not uploads.add(upload("c")), "more than the queue may hold"
    client.error = None
    assert uploads.drain(30) and uploads.full == "" and len(client.values) == 2
    assert uploads.stop() == 0
    circuit.end()


def test_a_remote_that_is_down_opens_the_circuit_and_keeps_the_queue() -> None:
    client = MemoryClient()
    client.error = RemoteDown("gone")
    uploads, circuit = uploader(client)
    assert uploads.add(upload("a"))
    while not circuit.is_open:
        time.sleep(0.001)
    assert not uploads.takes and not uploads.add(upload("b")) and not uploads.drain(30)
    assert uploads.pending(BLOCKS + "a") is not None
    assert uploads.stop() == 1
    circuit.end()


def test_a_deleted_block_is_not_sent_and_leaves_the_remote() -> None:
    client = MemoryClient()
    uploads, circuit = uploader(client)
    assert uploads.add(upload("a")) and uploads.drain(30)
    uploads.delete([BLOCKS + "a"])
    assert uploads.drain(30) and client.values == {}
    uploads.stop()
    circuit.end()


# -- pruning --------------------------------------------------------------------------------------------------------


def chain_of(client: MemoryClient, name: str, length: int, unused: float) -> None:
    parent = "root"
    for at in range(length):
        child = f"{name}{at}"
        client.values[BLOCKS + child] = bytes(10)
        client.unused[BLOCKS + child] = unused
        client.add(CHILDREN + parent, child, b"t")
        parent = child


@given(st.lists(st.tuples(st.integers(1, 6), st.floats(0, 1e6)), min_size=1, max_size=6), st.integers(0, 400))
def test_pruning_keeps_whole_chains_from_their_heads_on(chains: list[tuple[int, float]], keep: int) -> None:
    client = MemoryClient()
    for number, (length, unused) in enumerate(chains):
        chain_of(client, f"c{number}-", length, unused)
    before = 10 * sum(length for length, _ in chains)
    done = remove_surplus(client, keep=keep)  # type: ignore[arg-type]
    assert done.left_bytes == 10 * len(client.values) == before - done.removed_bytes
    assert max(0, keep - 10) < done.left_bytes <= keep or done.left_bytes == min(before, keep // 10 * 10)
    for number, (length, _) in enumerate(chains):
        left = [f"{BLOCKS}c{number}-{at}" in client.values for at in range(length)]
        assert left == sorted(left, reverse=True), "a block outlived its parent"
    named = {BLOCKS + member for _, member in client.links(CHILDREN)}
    assert named == set(client.values)


def test_the_chain_unused_for_longest_leaves_first() -> None:
    client = MemoryClient()
    chain_of(client, "old", 3, 100.0)
    chain_of(client, "new", 3, 1.0)
    remove_surplus(client, keep=30)  # type: ignore[arg-type]
    assert set(client.values) == {f"{BLOCKS}new{at}" for at in range(3)}
    assert remove_surplus(client, keep=None, unused_s=50.0).removed == 0  # type: ignore[arg-type]
    assert remove_surplus(client, keep=1000, ttl_s=0.5).removed == 3  # type: ignore[arg-type]
