"""The function behind ``kvlab replay``: capacities, samples, processes, rows, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.replay import BlockTrace, TraceError, block_trace, load_trace, read_capacity, replay, simulate
from kvlab.replay.capacity import BLOCKS, TOKENS, Capacity
from kvlab.replay.lru import lru_counts
from kvlab.replay.results import UNLIMITED
from kvlab.replay.sampling import sample, simulate_sampled
from kvlab.replay.tasks import ReplayTask, run_tasks
from kvlab.store.replacement import Replacement
from tests.replay_kit import CHAINS, SHARED, needs_traces, trace_of


def conversations(count: int = 40, turns: int = 12) -> BlockTrace:
    """Conversations that take turns, with one head of five blocks."""
    chains, sessions = [], []
    for turn in range(turns):
        for one in range(count):
            if (one * 7 + turn) % 3:
                chains.append([0, 1, 2, 3, 4, *range(1000 * (one + 1), 1000 * (one + 1) + 6 * (turn + 1))])
                sessions.append(one)
    return block_trace("conversations", 16, chains, sessions=sessions)


TRACE = conversations()


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("5%", BLOCKS, int(0.05 * TRACE.unique)),
        ("100 %", BLOCKS, TRACE.unique),
        ("300", BLOCKS, 300),
        ("1.5k blocks", BLOCKS, 1500),
        ("1Mtokens", TOKENS, 10**6),
        ("64KB", TOKENS, 64_000 // 100),
        ("1GiB", TOKENS, 2**30 // 100),
        ("inf", BLOCKS, TRACE.unique),
    ],
)
def test_capacities_are_read(text: str, unit: str, amount: int) -> None:
    found = read_capacity(text, TRACE, token_bytes=100)
    assert (found.unit, found.amount) == (unit, amount)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("much", "cannot read the capacity 'much': write a share such as 5%"),
        ("2GB", "in bytes: say how many a token takes, such as --kv-bytes"),
        ("0.001%", "holds no block"),
        ("8tokens", "less than a block of 16"),
    ],
)
def test_capacities_that_cannot_be_say_what_to_write(text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        read_capacity(text, TRACE)


@given(CHAINS)
def test_a_sample_of_everything_is_the_trace(chains: list[tuple[list[int], int]]) -> None:
    trace = trace_of(chains)
    whole = sample(trace, 1.0)
    assert whole.blocks.tolist() == trace.blocks.tolist()
    assert whole.partial.tolist() == trace.partial.tolist()


@given(CHAINS, st.sampled_from([0.2, 0.5, 0.8]), st.integers(0, 5))
def test_a_sampled_block_is_in_the_sample_in_all_of_its_uses(
    chains: list[tuple[list[int], int]], rate: float, seed: int
) -> None:
    trace = trace_of(chains)
    part = sample(trace, rate, seed)
    uses = sorted(np.bincount(trace.blocks).tolist()) if len(trace.blocks) else []
    kept = sorted(np.bincount(part.blocks).tolist()) if len(part.blocks) else []
    for count in set(kept):
        assert kept.count(count) <= uses.count(count)
    assert len(part) == len(trace)


def test_sampled_replays_are_near_the_exact_ones() -> None:
    for name in ("lru", "sieve"):
        room = read_capacity("40%", TRACE)
        exact = simulate(TRACE, name, room)
        near = simulate_sampled(TRACE, name, room, 0.4)
        assert near.by_block == pytest.approx(exact.by_block, abs=0.05)
        assert near.by_token == pytest.approx(exact.by_token, abs=0.05)
        assert np.isnan(near.by_request)


@needs_traces
def test_sampled_lru_of_mooncake_is_within_half_a_percent_point() -> None:
    trace = load_trace(SHARED / "mooncake" / "conversation_trace.jsonl.xz")
    for text in ("1%", "5%", "10%", "25%"):
        room = read_capacity(text, trace)
        (exact,) = lru_counts(trace, [room])
        assert simulate_sampled(trace, "lru", room, 0.1).by_block == pytest.approx(exact.by_block, abs=0.005)


@pytest.mark.parametrize("rate", [0, -1, 1.5])
def test_impossible_samples_are_refused(rate: float) -> None:
    with pytest.raises(TraceError, match="write a share above 0 and up to 1"):
        replay(TRACE, "sieve", "5%", sample=rate)


def test_samples_that_leave_too_little_are_refused() -> None:
    with pytest.raises(TraceError, match="sample more, or replay it whole"):
        replay(TRACE, "sieve", "5%", sample=0.01, progress=False)


def test_processes_count_as_one_does() -> None:
    tasks = [ReplayTask(name, read_capacity(text, TRACE)) for name in ("sieve", "lfu") for text in ("5%", "20%")]
    alone = run_tasks(TRACE, tasks, workers=1, progress=False)
    together = run_tasks(TRACE, tasks, workers=2, progress=False)
    for one, other in zip(alone, together, strict=True):
        assert one.hit_blocks.tolist() == other.hit_blocks.tolist()
        assert (one.evictions, one.capacity) == (other.evictions, other.capacity)


def test_a_policy_of_ones_own_is_replayed_even_with_several_processes() -> None:
    class Newest(Replacement):
        name = "newest_first"

        def __init__(self, capacity: int) -> None:
            super().__init__(capacity)
            self._keys: dict[object, None] = {}

        def admit(self, key, size=1, cost=1.0, uses=1) -> None:  # type: ignore[no-untyped-def]
            self._keys[key] = None

        def touch(self, key) -> None: ...  # type: ignore[no-untyped-def]

        def victim(self, evictable=lambda key: True):  # type: ignore[no-untyped-def]
            return next((key for key in reversed(self._keys) if evictable(key)), None)

        def remove(self, key, evicted=True) -> None:  # type: ignore[no-untyped-def]
            del self._keys[key]

        def __contains__(self, key: object) -> bool:
            return key in self._keys

        def __len__(self) -> int:
            return len(self._keys)

    found = replay(TRACE, ["newest_first", "sieve"], ["10%"], workers=2, progress=False)
    assert [one.replace for one in found.counts] == ["newest_first", "sieve"]
    assert all(one.hits > 0 for one in found.counts)


def test_rows_are_tidy_and_name_trace_policy_and_capacity() -> None:
    found = replay(TRACE, "lru,sieve", "5%,20%", progress=False)
    assert {row["replace"] for row in found.rows} == {"lru", "sieve", UNLIMITED}
    for row in found.rows:
        assert {"policy", "workload", "metric", "value", "unit", "trace", "replace", "capacity"} <= row.keys()
    ratios = found.frame().filter(metric="hit_ratio")
    assert ratios.filter(replace="lru", capacity="20%")["value"][0] == found.counts[1].by_token
    assert found.statistics.by_token == ratios.filter(replace=UNLIMITED)["value"][0]
    assert ratios["value"].is_between(0, found.statistics.by_token).all()


def test_bytes_need_the_bytes_of_a_token_and_are_counted() -> None:
    found = replay(TRACE, "lru", "1MB", token_bytes=100, progress=False)
    room = Capacity("10000tokens", TOKENS, 10_000, 0.0)
    assert found.counts[0].hits == lru_counts(TRACE, [room])[0].hits
    rows = {row["metric"]: row["value"] for row in found.rows if row["replace"] == "lru"}
    assert rows["inserted_bytes"] == 1600 * rows["inserted_blocks"]


def test_results_show_themselves_as_text_and_html() -> None:
    found = replay(TRACE, "lru", "5%", progress=False)
    assert "conversations: " in str(found) and "unlimited" in str(found)
    assert "<table>" in found._repr_html_() and "unlimited" in found._repr_html_()
    assert found.curve()["value"].is_sorted()
    assert found.chart().to_dict()["title"]["text"].startswith("Hit ratio by capacity")


def test_what_cannot_be_replayed_is_refused() -> None:
    with pytest.raises(TraceError, match="replace='mru' is not known; use one of"):
        replay(TRACE, "mru")
    with pytest.raises(TraceError, match="has no block"):
        replay(block_trace("short", 64, [[]], input_tokens=[5]))
    with pytest.raises(TraceError, match="nothing to replay"):
        replay(TRACE, "")


def test_plain_blocks_are_counted_without_their_parents() -> None:
    trace = block_trace("made", 16, [[1, 2], [3], [1, 2]])
    assert replay(trace, "fifo", "2", plain=True, progress=False).counts[0].evictions > 0
    assert len(trace.plain()) == 5 and trace.plain().is_plain


def test_traces_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(TraceError, match="as many ids as its tokens fill"):
        block_trace("made", 16, [[1, 2]], input_tokens=[16])
    with pytest.raises(TraceError, match="give one value a request"):
        block_trace("made", 16, [[1, 2]], times=[1.0, 2.0])
    with pytest.raises(TraceError, match="use 1 token or more"):
        block_trace("made", 0, [[1]])
