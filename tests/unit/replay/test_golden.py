"""Every number of the reference file that a replay of one tier can give, exactly."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest

from kvlab.replay import BlockTrace, Capacity, load_trace, lru_counts, read_capacity, simulate, statistics
from kvlab.replay.capacity import BLOCKS
from kvlab.replay.orders import BELADY
from kvlab.replay.statistics import infinite_hits
from kvlab.store.replacement import replacements
from tests.replay_kit import SHARED, needs_traces

pytestmark = needs_traces
REFERENCE: dict[str, Any] = json.loads((SHARED / "reference.json").read_text()) if SHARED.is_dir() else {}
OURS = {
    "FIFO": "fifo",
    "LRU": "lru",
    "CLOCK": "clock",
    "CLOCK-1bit": "clock",
    "LFU": "lfu",
    "LFU(in-cache count, LRU tie)": "lfu",
    "SIEVE": "sieve",
    "S3-FIFO": "s3fifo",
    "S3-FIFO(10%,ghost 90%,thr 2)": "s3fifo",
    "ARC": "arc",
    "ARC(unit p step)": "arc",
    "BELADY": "belady",
}
"""The reference's names of policies, and ours."""


def computed(name: str) -> Any:
    return REFERENCE.get("computed_independently", {}).get(name, {})


@cache
def mooncake() -> BlockTrace:
    return load_trace(SHARED / "mooncake" / "conversation_trace.jsonl.xz")


@cache
def blocks(name: str) -> BlockTrace:
    return load_trace(SHARED / "caffeine-lirs" / f"{name}.trace.gz")


def in_blocks(amount: int) -> Capacity:
    return Capacity(str(amount), BLOCKS, amount, 0.0)


def known(name: str) -> str:
    if OURS[name] not in (*replacements(), BELADY):
        pytest.skip(f"no policy of this kvlab is called {OURS[name]}")
    return OURS[name]


def test_statistics_of_mooncake_equal_the_reference() -> None:
    wanted, trace = computed("mooncake_conversation")["stats"], mooncake()
    found = statistics(trace)
    assert (found.requests, found.blocks, found.unique) == (wanted["n"], wanted["total"], wanted["uniq"])
    assert (found.by_block, found.by_token) == (wanted["inf_block"], wanted["tok"])
    assert infinite_hits(trace)[0].sum() / found.blocks == wanted["inf_prefix"]
    assert found.mean_by_block == pytest.approx(wanted["perreq_block"], rel=1e-14)  # sums in another order
    assert found.mean_by_token == pytest.approx(wanted["perreq_tok"], rel=1e-14)
    assert statistics(trace.full_blocks()).by_block == wanted["full_blocks_only"]
    assert found.beside_prefix == wanted["reqs_with_nonprefix_hits"]
    assert found.input_tokens / found.requests == wanted["avg_in"]
    assert found.output_tokens / found.requests == wanted["avg_out"]
    assert (found.span_s, found.empty, found.longest) == (wanted["span_s"], wanted["empty"], wanted["max_in"])
    assert len(np.unique(trace.times)) == wanted["distinct_ts"]
    assert (trace.lengths == -(-trace.input_tokens // trace.block_tokens)).sum() == wanted["len_ok"]


def test_every_block_of_mooncake_has_one_parent_and_is_once_in_a_request() -> None:
    wanted, trace = computed("mooncake_conversation")["stats"], mooncake()
    again = sum(len(set(chain.tolist())) < len(chain) for chain in map(trace.chain, range(len(trace))))
    assert (again, trace.unique) == (wanted["dup_in_req"], wanted["uniq"]), "other parents would make more blocks"


def test_published_cache_ratio_of_mooncake_is_near_the_mean_of_requests() -> None:
    published = REFERENCE["published"]["mooncake_fast25_table2"]["conversation"]
    found = statistics(mooncake())
    assert found.requests == published["n"]
    assert found.mean_by_token == pytest.approx(published["cache_ratio"], abs=0.01)
    assert int(found.input_tokens / found.requests) == published["avg_in"]
    assert round(found.output_tokens / found.requests) == published["avg_out"]


def test_lru_of_mooncake_equals_the_third_partys_at_every_share() -> None:
    wanted, trace = REFERENCE["third_party"]["mooncake_conversation_lru"], mooncake().plain()
    capacities = [read_capacity(f"{100 * share:g}%", trace) for share in wanted["fraction_of_unique_blocks"]]
    found = [round(one.by_block, 3) for one in lru_counts(trace, capacities)]
    assert found == wanted["lru"]
    assert round(statistics(trace).by_block, 3) == wanted["infinite"]


FLAT = [
    (name, int(capacity), ratio)
    for name, curve in computed("mooncake_conversation").get("block_hit_ratio_flat_stream", {}).items()
    for capacity, ratio in curve.items()
]


@pytest.mark.parametrize(("name", "capacity", "wanted"), FLAT)
def test_hit_ratio_of_mooncake_as_a_flat_stream_equals_the_reference(name: str, capacity: int, wanted: float) -> None:
    found = simulate(mooncake().plain(), known(name), in_blocks(capacity))
    assert round(found.by_block, 4) == wanted
    if name == "LRU":
        assert lru_counts(mooncake().plain(), [in_blocks(capacity)])[0].hits == found.hits


UNIT = [
    (case, name, hits)
    for case, entry in computed("caffeine_lirs_unit_size_hits").items()
    for name, hits in entry["hits"].items()
]


@pytest.mark.parametrize(("case", "name", "wanted"), UNIT)
def test_hits_of_block_traces_equal_the_reference(case: str, name: str, wanted: int) -> None:
    trace, _, capacity = case.partition("@")
    entry = computed("caffeine_lirs_unit_size_hits")[case]
    assert (len(blocks(trace)), blocks(trace).unique) == (entry["requests"], entry["unique"])
    found = simulate(blocks(trace), known(name), in_blocks(int(capacity)))
    assert found.hits == wanted
    if name == "LRU":
        assert lru_counts(blocks(trace), [in_blocks(int(capacity))])[0].hits == wanted
