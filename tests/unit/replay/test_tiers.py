"""RAM over SSD in a replay: the same as in the live store, and sound after every request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvlab.replay import block_trace
from kvlab.replay.kept_folder import KeptFolder
from kvlab.replay.sized_block import TraceBlocks
from kvlab.replay.tiers import ReplayTiers
from kvlab.store import Namespace, Store
from kvlab.store.config import StoreConfig
from kvlab.store.read_buffers import PayloadList
from kvlab.store.replacement import REPLACEMENTS
from kvlab.store.ssd.tier import SsdConfig
from kvlab.tiers import RAM, SSD

CHAINS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=14)
BLOCK = 4


def tiers(chains: list[list[int]], ram: int, ssd: int, replace: str = "lru", admit: int = 1) -> Any:
    trace = block_trace("made", BLOCK, chains)
    blocks = TraceBlocks(trace.parents.tolist(), [1] * trace.unique, trace.depths.tolist(), BLOCK)
    numbered = [trace.chain(at).tolist() for at in range(len(trace))]
    return ReplayTiers(ram, ssd, replace, blocks, admit=admit, chains=lambda: numbered), numbered


def replayed(made: ReplayTiers, chain: list[int]) -> list[str]:
    """Serve a request; return the tier of each block of its stored prefix."""
    found = made.start(chain)
    made.read(chain, len(found))
    made.end(chain)
    return [RAM.name if in_ram else SSD.name for in_ram in found]


@pytest.mark.parametrize("replace", [*REPLACEMENTS, "belady"])
@settings(max_examples=15, deadline=None)
@given(chains=CHAINS, ram=st.integers(1, 8), ssd=st.integers(1, 12), admit=st.integers(1, 2))
def test_no_tier_holds_more_than_its_capacity_and_what_was_written_is_counted(
    replace: str, chains: list[list[int]], ram: int, ssd: int, admit: int
) -> None:
    made, numbered = tiers(chains, ram, ssd, replace, admit)
    for chain in numbered:
        before = made.written
        found = replayed(made, chain)
        assert made.ram.held <= ram and made.ssd.nbytes() <= ssd
        assert made.written == made.counts.writes == made.counts.written >= len(made.ssd)
        assert SSD.name not in found or before > 0


def settled(store: Store) -> None:
    """Wait until the writer has written what it writes by itself."""
    writer = store._writer
    assert writer is not None
    with store._lock:
        while writer._in_flight or [key for key in writer._queue if key in store._ram.dirty and _due(store, key)]:
            store._lock.wait(0.001)


def _due(store: Store, key: bytes) -> bool:
    entry = store._ram.get(key)
    return entry is not None and entry.uses >= store._writer._admit  # type: ignore[union-attr]


def served(store: Store, space: Namespace, contents: list[int]) -> list[str]:
    tokens = np.repeat(np.array(contents, np.int32), BLOCK)
    match = store.match(space, tokens)
    store.read_into(match, PayloadList())
    settled(store)  # a decoder computes the rest meanwhile
    start = store.stored(space, tokens)
    payloads = [{"kv": np.zeros((1, BLOCK, 1), np.uint8)} for _ in range(len(contents) - start // BLOCK)]
    store.put(space, tokens, start, payloads)
    settled(store)
    return [piece.tier for piece in match.pieces]


@settings(max_examples=30, deadline=None)
@given(
    chains=CHAINS,
    ram=st.integers(1, 8),
    ssd=st.integers(1, 12),
    replace=st.sampled_from(["lru", "s3fifo", "sieve", "gdsf", "lfu", "shortest", "superseded"]),
    admit=st.integers(1, 2),
)
@example(  # a block that comes back from SSD has the uses of its new stay only
    chains=[[2], [1, 2], [1], [0], [0], [0, 0, 0], [1, 1], [1], [2], [1]], ram=2, ssd=2, replace="lfu", admit=2
)
@example(chains=[[2], [2], [1], [1], [2, 2], [1], [2], [1, 0], [0], [1, 2, 0]], ram=2, ssd=2, replace="gdsf", admit=2)
@example(  # a reading admits a block to SSD before the request's own blocks are stored
    chains=[[1], [0, 0], [1, 2], [0, 2], [2, 0], [1, 2]], ram=3, ssd=1, replace="lru", admit=2
)
def test_every_block_is_found_in_the_tier_where_the_live_store_finds_it(
    chains: list[list[int]], ram: int, ssd: int, replace: str, admit: int
) -> None:
    made, numbered = tiers(chains, ram, ssd, replace, admit)
    space = Namespace("model", "", "", BLOCK)
    config = StoreConfig(BLOCK, ram * BLOCK, replace, (KeptFolder(ssd * BLOCK, replace),), admit=admit)
    with Store(config) as store:
        for contents, chain in zip(chains, numbered, strict=True):
            assert replayed(made, chain) == served(store, space, contents)


@settings(max_examples=5, deadline=None)
@given(chains=CHAINS, ram=st.integers(2, 8), ssd=st.integers(2, 12))
def test_files_on_disk_are_found_where_the_replay_finds_their_blocks(
    chains: list[list[int]], ram: int, ssd: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, numbered = tiers(chains, ram, ssd)
    space = Namespace("model", "", "", BLOCK)
    folder = tmp_path_factory.mktemp("ssd")
    size = _file_size(folder / "one", space)
    ssd_config = SsdConfig(folder / "store", ssd * size, "lru")
    with Store(StoreConfig(BLOCK, ram * BLOCK, "lru", (ssd_config,))) as store:
        for contents, chain in zip(chains, numbered, strict=True):
            assert replayed(made, chain) == served(store, space, contents)


def _file_size(folder: Path, space: Namespace) -> int:
    with Store(StoreConfig(BLOCK, 100, "lru", (SsdConfig(folder, 10**6),))) as store:
        store.put(space, np.ones(BLOCK, np.int32), 0, [{"kv": np.zeros((1, BLOCK, 1), np.uint8)}])
        store.flush()
        return store.tiers_bytes()[SSD.name]


def test_a_block_read_twice_from_ssd_is_in_ram_again() -> None:
    made, (first, second, *again) = tiers([[1, 2], [7, 8], [1, 2], [1, 2], [1, 2]], ram=2, ssd=10)
    replayed(made, first)
    replayed(made, second)
    assert [replayed(made, chain) for chain in again] == [["ssd"] * 2, ["ssd"] * 2, ["ram"] * 2]


def test_a_chain_longer_than_ram_is_stored_whole_on_ssd() -> None:
    made, (chain, again) = tiers([[1, 2, 3, 4, 5]] * 2, ram=2, ssd=10)
    assert replayed(made, chain) == []
    assert made.counts.writes == 5
    assert len(replayed(made, again)) == 5


def test_blocks_are_written_once_they_were_used_often_enough() -> None:
    made, numbered = tiers([[1, 2], [1, 2], [1, 2]], ram=4, ssd=10, admit=3)
    written = []
    for chain in numbered:
        replayed(made, chain)
        written.append(made.counts.writes)
    assert written == [0, 0, 2], "the put is the first use, and each reading is one more"


def test_files_are_no_part_of_a_store_without_ssd() -> None:
    made, numbered = tiers([[1, 2], [3, 4], [1, 2]], ram=2, ssd=0)
    assert [replayed(made, chain) for chain in numbered] == [[], [], []]
    assert made.written == 0 and made.evictions == 4
