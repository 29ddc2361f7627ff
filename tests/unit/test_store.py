"""The store's promises, one by one, on small blocks."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvlab.errors import StoreError
from kvlab.replacement_names import replacement_files
from kvlab.store import Namespace, Store, write_behind
from kvlab.store.ssd.eviction import Evictor
from kvlab.store.ssd.folder import StoreFolder
from tests.store_kit import BLOCK, MB, NS, fetch, opened, payloads, put, rows, same, sound

A = list(range(100, 120))  # two blocks and a tail of four


@pytest.fixture(params=["ram", "ssd"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reopened(store: Store, where: str, folder: Path) -> Store:
    """The same store, or what a restart leaves of it."""
    if where == "ram":
        return store
    store.close()
    return opened(folder)


def test_match_ends_at_any_token(tmp_path: Path, where: str) -> None:
    store = opened(tmp_path)
    assert put(store, A).blocks == 3
    store = reopened(store, where, tmp_path)
    for n in range(len(A) + 1):
        match = fetch(store, A[:n])
        assert (match.tokens, match.miss, match.by_tier.get(where, 0)) == (n, "", n)
        if where == "ssd":  # reading brought the block to RAM: look at the SSD again
            store.close()
            store = opened(tmp_path)
    match = fetch(store, [*A, 1, 2])
    assert (match.tokens, match.miss) == (20, "never_seen")
    for at in (1, 7, 8, 11, 17):
        match = fetch(store, [*A[:at], 7, *A[at + 1 :]])
        assert (match.tokens, match.miss) == (at, f"diverged_at={at}")
    assert fetch(store, [7, *A[1:]]).miss == "never_seen"
    sound(store)
    store.close()


def test_nearest_of_many_children_is_found(tmp_path: Path, where: str) -> None:
    rng = np.random.default_rng(0)
    store = opened(tmp_path)
    many = [[*A[:8], *rng.integers(0, 3, 8).tolist()] for _ in range(200)]
    for tokens in many:
        put(store, tokens)
    store = reopened(store, where, tmp_path)
    for _ in range(100):
        tokens = [*A[:8], *rng.integers(0, 3, 8).tolist()]
        best = max(next((i for i in range(16) if one[i] != tokens[i]), 16) for one in many)
        assert fetch(store, tokens).tokens == best
    store.close()


def test_longer_block_replaces_its_tail(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, A)
        assert put(store, A[:18], 16).blocks == 0  # covered by the longer tail
        store.flush()
        longer = [*A, 1, 2, 3, 4, 5]
        assert put(store, longer, 16).blocks == 2
        store.flush()
        assert fetch(store, longer).tokens == 25
        assert store.stats()["ram_blocks"] == store.stats()["ssd_blocks"] == 4
        sound(store)


def test_second_put_of_the_same_tokens_stores_nothing(tmp_path: Path, where: str) -> None:
    store = opened(tmp_path)
    put(store, A)
    store.flush()
    written = store.stats()["bytes_written"] if where == "ram" else 0
    store = reopened(store, where, tmp_path)
    again = put(store, A)
    assert (again.blocks, again.bytes) == (0, 0)
    assert store.stored(NS, A) == 16
    store.flush()
    assert store.stats()["bytes_written"] == written
    store.close()


def test_namespaces_never_meet(tmp_path: Path) -> None:
    others = [
        Namespace("model2", "", "float32", BLOCK),
        Namespace("model", "q4", "float32", BLOCK),
        Namespace("model", "", "bfloat16", BLOCK),
        Namespace("model", "", "float32", BLOCK, "tenant"),
    ]
    with opened(tmp_path) as store:
        put(store, A)
        misses = [fetch(store, A, ns) for ns in others]
        assert [match.tokens for match in misses] == [0] * 4
        assert [match.miss for match in misses] == ["never_seen", "other_policy", "other_policy", "never_seen"]
        for ns in others:
            put(store, A, ns=ns)
        for ns in [NS, *others]:
            assert fetch(store, A, ns).tokens == 20
    with opened(tmp_path) as store:
        assert fetch(store, A, Namespace("model", "q2", "float32", BLOCK)).miss == "other_policy"
        assert fetch(store, A, Namespace("model3", "", "float32", BLOCK)).miss == "never_seen"
        for ns in [NS, *others]:
            assert fetch(store, A, ns).tokens == 20


def test_checkpoints_are_found_at_any_token(tmp_path: Path, where: str) -> None:
    store = opened(tmp_path)
    put(store, A)
    state = {n: {"s": np.arange(n, dtype=np.float16), "t": np.array(n)} for n in (3, 8, 13, 20)}
    for n, payload in state.items():
        store.put_checkpoint(NS, A[:n], payload)
    store = reopened(store, where, tmp_path)
    expected = {2: (0, "no_checkpoint"), 3: (3, ""), 7: (3, "no_checkpoint"), 8: (8, ""), 12: (8, "no_checkpoint"),
                13: (13, ""), 19: (13, "no_checkpoint"), 20: (20, "")}  # fmt: skip
    for n, (tokens, miss) in expected.items():
        match = store.match(NS, A[:n], checkpoint=True)
        assert (match.tokens, match.miss) == (tokens, miss)
        got, match = store.read(match)
        assert sum(payload["0.k"].shape[1] for payload in got) == tokens
        payload = store.read_checkpoint(match)
        if tokens:
            assert payload is not None
            same(payload, state[tokens])
        else:
            assert payload is None
    match = store.match(NS, [*A[:9], 7, 7, 7, 7, 7], checkpoint=True)
    assert (match.tokens, match.miss) == (8, "no_checkpoint")
    store.release(match)
    match = store.match(NS, [*A, 7], checkpoint=True)
    assert (match.tokens, match.miss) == (20, "never_seen")
    store.release(match)
    sound(store)
    store.close()


def test_checkpoint_out_of_reach_of_blocks_is_not_used() -> None:
    store = opened(None, ram=MB)
    put(store, A[:8])
    store.put_checkpoint(NS, A[:16], {"s": np.ones(1)})
    match = store.match(NS, A, checkpoint=True)
    assert (match.tokens, match.checkpoint, match.miss) == (0, None, "no_checkpoint")


def test_arrays_come_back_as_they_were_given(tmp_path: Path, where: str) -> None:
    payload = {
        "empty": np.zeros((2, BLOCK, 0), np.float32),
        "bf16": np.arange(2 * BLOCK * 3, dtype=np.uint16).reshape(2, BLOCK, 3),
        "strided": np.arange(2 * BLOCK * 8, dtype=np.int8).reshape(2, BLOCK, 8)[:, :, ::2],
        "q": np.full((1, BLOCK, 5), 7, np.uint32),
        "f16": np.random.default_rng(0).standard_normal((4, BLOCK, 1)).astype(np.float16),
    }
    store = opened(tmp_path)
    store.put(NS, A[:8], 0, [payload])
    store = reopened(store, where, tmp_path)
    got, match = store.read(store.match(NS, A[:8]))
    same(got[0], payload)
    if where == "ram":
        assert all(np.shares_memory(got[0][name], array) for name, array in payload.items() if array.size)
    with pytest.raises(ValueError, match="read-only"):
        got[0]["q"][:] = 0
    store.close()


def test_full_ram_evicts_leaves_first() -> None:
    size = sum(array.nbytes for array in rows(A, 0, 8).values())
    store = opened(None, ram=4 * size)
    first, second = list(range(32)), list(range(500, 524))
    put(store, first)
    put(store, second)
    assert store.tiers_bytes()["ram"] <= 4 * size
    assert fetch(store, second).tokens == 24
    match = fetch(store, first)
    assert (match.tokens, match.miss) == (8, "evicted")
    assert store.stats()["evictions"] == 3
    sound(store)


@pytest.mark.parametrize("replace", replacement_files())
@pytest.mark.parametrize("write", ["back", "through"])
def test_tiers_keep_their_budgets_and_serve_right_bytes(tmp_path: Path, replace: str, write: str) -> None:
    size = sum(array.nbytes for array in rows(A, 0, 8).values())
    file = 4096  # no block file of this test is larger
    ram, ssd = 12 * size, 40 * 1024
    rng = np.random.default_rng(3)
    store = opened(tmp_path, ram=ram, ssd=ssd, replace=replace, write=write)
    for _ in range(60):
        tokens = [int(rng.integers(4)), *rng.integers(0, 2, int(rng.integers(1, 60))).tolist()]
        match = fetch(store, tokens)
        put(store, tokens, match.tokens // BLOCK * BLOCK)
        held = store.tiers_bytes()
        assert held["ram"] <= ram + size and held["ssd"] <= ssd + file
    store.flush()
    on_disk = sum(path.stat().st_size for path in (tmp_path / "blocks").rglob("*") if path.is_file())
    assert on_disk == store.tiers_bytes()["ssd"] <= ssd
    sound(store)
    store.close()
    with opened(tmp_path, ssd=ssd) as store:
        sound(store)


def test_eviction_spares_the_parents_of_the_blocks_to_write(tmp_path: Path) -> None:
    """Blocks of one batch are reserved before the index knows their parents."""
    with opened(tmp_path) as store:
        for first in range(4):
            put(store, [first, *A[:7]])
            store.flush()
    folder = StoreFolder(tmp_path)
    oldest, *others = [key for (key,) in folder.index.rows("SELECT key FROM blocks ORDER BY id")]
    budget = folder.index.sum("bytes")
    left: list[bytes] = []
    evictor = Evictor(folder, budget, "lru", lambda _: False, lambda key, *_: left.append(key))
    with folder.index.write():
        assert evictor.make_space(budget // 2, {oldest}) and left == others[:2]
        assert not evictor.make_space(budget, {oldest}) and left == others
        assert evictor.make_space(budget) and left == [*others, oldest]
    folder.close()


def test_batch_of_writes_protects_the_parents_of_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[bytes]] = []
    make_space = Evictor.make_space

    def spy(self: Evictor, size: int, keep: Any = ()) -> bool:
        kept.append(set(keep))
        return make_space(self, size, keep)

    with opened(tmp_path, write="snapshot") as store:
        put(store, A[:8])
        store.flush()
        monkeypatch.setattr(Evictor, "make_space", spy)
        put(store, A, start=8)
        store.flush()
        pieces = store.match(NS, A)
    keys = [piece.key for piece in pieces.pieces]
    asked = [keep for keep in kept if keep]
    assert len(asked) == len(keys) - 1 and all(set(keys[:-1]) <= keep for keep in asked)


def test_blocks_of_an_open_match_are_not_evicted() -> None:
    size = sum(array.nbytes for array in rows(A, 0, 8).values())
    store = opened(None, ram=2 * size)
    put(store, A[:16])
    match = store.match(NS, A[:16])
    assert put(store, list(range(16))).blocks == 0
    got, again = store.read(match)
    assert again is match and len(got) == 2
    assert put(store, list(range(16))).blocks == 2
    with pytest.raises(StoreError, match="match again"):
        store.read(match)
    lost = store.match(NS, list(range(16)))
    assert lost.tokens == 16
    del lost  # never read nor released
    assert put(store, A[:16]).blocks == 2
    sound(store)


def test_spill_under_pressure_serves_everything(tmp_path: Path) -> None:
    size = sum(array.nbytes for array in rows(A, 0, 8).values())
    seen: list[str] = []
    with opened(tmp_path, ram=3 * size, on_event=lambda kind, _: seen.append(kind)) as store:
        talks = [[n, *range(40)] for n in range(6)]
        for talk in talks:
            put(store, talk)
        for talk in talks:
            assert fetch(store, talk).tokens == 41
        assert store.tiers_bytes()["ram"] <= 4 * size
        assert "spilled" in seen and "stored" in seen and "evicted" not in seen
        sound(store)


def test_ram_smaller_than_a_block_writes_every_block_to_ssd(tmp_path: Path) -> None:
    with opened(tmp_path, ram=0) as store:
        put(store, A)
        store.flush()
        match = fetch(store, A)
        assert match.tokens == 20 and match.by_tier.get("ssd", 0) >= 16


def test_snapshot_writes_at_flush_only(tmp_path: Path) -> None:
    size = sum(array.nbytes for array in rows(A, 0, 8).values())
    with opened(tmp_path, write="snapshot", ram=2 * size) as store:
        put(store, list(range(32)))
        assert store.stats()["bytes_written"] == 0 and store.stats()["ram_blocks"] == 2
        store.flush()
        assert store.stats()["ssd_blocks"] == 2


def test_through_writes_full_blocks_at_once_and_tails_at_flush(tmp_path: Path) -> None:
    with opened(tmp_path, write="through") as store:
        store.set_background_priority(True)
        for end in (8, 16, 20):
            put(store, A[:end])
            assert store.stats()["ssd_blocks"] == end // 8, "before the put returns"
        store.put_checkpoint(NS, A[:16], {"0": np.ones(3, np.float32)})
        assert store.stats()["ssd_blocks"] == 3
        assert store.flush()
        assert store.stats()["ssd_blocks"] == 4


def eventually(store: Store, blocks: int, seconds: float = 60.0) -> bool:
    """Whether so many blocks are on disk before long."""
    until = time.monotonic() + seconds
    while store.stats()["ssd_blocks"] < blocks and time.monotonic() < until:
        time.sleep(0.01)
    return bool(store.stats()["ssd_blocks"] == blocks)


def test_back_writes_full_blocks_soon(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        put(store, A)
        assert eventually(store, 2)


@pytest.mark.parametrize("end", ["priority ends", "flush", "full ram"])
def test_writer_with_background_priority_pauses_until_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(write_behind, "PAUSE_PER_CPU_SECOND", 1e9)
    monkeypatch.setattr(write_behind, "MAX_PAUSE_S", 3600.0)
    size = sum(array.nbytes for array in rows(A, 0, 8).values())
    with opened(tmp_path, ram=8 * size) as store:
        store.set_background_priority(True)
        put(store, [1, *A[:15]])
        assert eventually(store, 2)
        put(store, [2, *A[:15]])
        assert not eventually(store, 4, 0.2)
        if end == "priority ends":
            store.set_background_priority(False)
        elif end == "flush":
            store.flush()
        else:
            put(store, [3, *range(23)])  # with these, more than half of RAM is unwritten
        assert eventually(store, 7 if end == "full ram" else 4)
        sound(store)


def test_block_is_admitted_to_ssd_at_its_second_use(tmp_path: Path) -> None:
    with opened(tmp_path, admit=2) as store:
        put(store, A)
        put(store, list(range(16)))
        fetch(store, A)
        store.flush()
        assert store.stats()["ssd_blocks"] == 3
    with opened(tmp_path) as store:
        assert fetch(store, A).tokens == 20
        assert fetch(store, list(range(16))).tokens == 0


def test_bytes_written_are_counted_and_capped(tmp_path: Path) -> None:
    with opened(tmp_path, write_cap=3000) as store:
        put(store, list(range(80)))
        store.flush()
        stats = store.stats()
        assert 0 < stats["bytes_written"] <= 3000 and stats["capped"] > 0
        assert stats["bytes_written"] == stats["ssd_bytes"] == stats["folder_bytes_written"]
        assert fetch(store, list(range(80))).tokens == 80
    with opened(tmp_path, write_cap=3000) as store:  # the day is the folder's, not the process's
        put(store, list(range(900, 980)))
        store.flush()
        assert store.stats()["bytes_written"] == 0


def test_agent_loop_writes_little_more_than_its_kv(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for write in ("back", "through"):
        with opened(tmp_path / write, write=write, block=16) as store:
            ns = Namespace("m", "", "float32", 16)
            tokens = rng.integers(0, 500, 1500).tolist()
            for _ in range(15):
                tokens += rng.integers(0, 500, int(rng.integers(40, 300))).tolist()
                put(store, tokens, store.stored(ns, tokens), ns)
                store.flush()
            unique = sum(array.nbytes for payload in payloads(tokens, 0, ns) for array in payload.values())
            headers = store.stats()["ssd_blocks"] * 640  # of a few hundred bytes; real blocks are a thousand times that
            assert store.stats()["bytes_written"] - headers <= 1.25 * unique


def test_eviction_reason_survives_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path, ssd=6000) as store:
        put(store, list(range(16)))
        store.flush()
        for n in range(6):
            put(store, [1000 + n, *range(15)])
            store.flush()
    with opened(tmp_path, ssd=6000) as store:
        match = fetch(store, list(range(16)))
        assert match.tokens < 16 and match.miss == "evicted"
        assert store.stats()["misses"] == {"evicted": 1}


def test_files_are_private(tmp_path: Path) -> None:
    with opened(tmp_path / "store") as store:
        put(store, A)
        store.flush()
        for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_two_stores_share_a_folder(tmp_path: Path) -> None:
    with opened(tmp_path) as one, opened(tmp_path) as two:
        put(one, A)
        one.flush()
        assert fetch(two, A).tokens == 20
        put(two, [*A, 1, 2, 3, 4, 5, 6, 7], 16)
        two.flush()
        assert fetch(one, [*A, 1, 2, 3, 4, 5, 6, 7]).tokens == 27
        assert one.tiers_bytes()["ssd"] == two.tiers_bytes()["ssd"]
        sound(one)
        sound(two)


def test_store_is_right_under_many_threads(tmp_path: Path) -> None:
    size = sum(array.nbytes for array in rows(A, 0, 8).values())
    failures: list[BaseException] = []

    def work(store: Store, seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                tokens = [int(rng.integers(3)), *rng.integers(0, 2, int(rng.integers(1, 50))).tolist()]
                fetch(store, tokens)
                put(store, tokens)
        except BaseException as error:
            failures.append(error)

    with opened(tmp_path, ram=10 * size, ssd=60_000, write="through") as store:
        threads = [threading.Thread(target=work, args=(store, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
        assert store.tiers_bytes()["ram"] <= 11 * size
        sound(store)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"block": 0}, "block=0"),
        ({"ram": -1}, "ram"),
        ({"ssd": 0}, "budget"),
        ({"write_cap": -1}, "write_cap"),
        ({"replace": "never"}, ", ".join(replacement_files())),
        ({"write": "never"}, "back, through, snapshot"),
        ({"admit": 0}, "admit"),
    ],
)
def test_impossible_settings_raise_an_error_that_names_the_possible_ones(
    tmp_path: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(StoreError, match=says):
        opened(tmp_path, **settings)


def test_misuse_raises_an_error_that_says_what_is_wrong() -> None:
    store = opened(None, ram=MB)
    with pytest.raises(StoreError, match="block boundary"):
        put(store, A, 4)
    with pytest.raises(StoreError, match="only 4 tokens"):
        store.put(NS, A[:4], 0, payloads(A))
    with pytest.raises(StoreError, match="all but the last"):
        store.put(NS, A, 0, [rows(A, 0, 4), rows(A, 4, 12)])
    with pytest.raises(StoreError, match="blocks of 16"):
        store.match(Namespace("m", "", "float32", 16), A)
    with pytest.raises(StoreError, match="ids"):
        store.match(NS, [-1])
    with pytest.raises(StoreError, match="axis 1"):
        store.put(NS, A, 0, [{"a": np.zeros(8)}])
    with pytest.raises(StoreError, match="NumPy"):
        store.put_checkpoint(NS, A, {"a": np.array(["x"])})
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.match(NS, A)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_second_store_in_the_process_leaves_the_first_ones_lock_on_the_index(tmp_path: Path) -> None:
    """Without it another process takes itself for the last one, and deletes the log that this one still writes to."""
    take = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 510, 0x40000002)\n"  # SQLite's shared range
    )
    command = [sys.executable, "-c", take, str(tmp_path / "catalog.sqlite")]
    with opened(tmp_path), opened(tmp_path):
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0
    assert subprocess.run(command).returncode == 0
