"""The function behind ``kvlab replay --ram --ssd``: counts, waits, rows, processes, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvlab.cli import main
from kvlab.errors import SpeedError
from kvlab.replay import BlockTrace, RestoreRule, TraceError, block_trace, read_capacity, replay_tiers, simulate_tiers
from kvlab.speed import Speed, read_speed
from tests.replay_kit import CHAINS, trace_of

COST = "prefill=100,attention=0.001,ram=1MB,ssd=100KB,latency=0.5,restore_latency=0.1"


def conversations(count: int = 12, turns: int = 8, pause: float = 10.0) -> BlockTrace:
    """Conversations that take turns, with one head of five blocks."""
    chains, sessions = [], []
    for turn in range(turns):
        for one in range(count):
            chains.append([0, 1, 2, 3, 4, *range(1000 * (one + 1), 1000 * (one + 1) + 4 * (turn + 1))])
            sessions.append(one)
    times = pause * np.arange(len(chains))
    return block_trace("conversations", 16, chains, sessions=sessions, times=times)


TRACE = conversations()


@settings(max_examples=40, deadline=None)
@given(CHAINS, st.integers(4, 60), st.integers(4, 60), st.integers(1, 2))
def test_every_token_is_restored_from_one_tier_or_computed(
    chains: list[tuple[list[int], int]], ram: int, ssd: int, admit: int
) -> None:
    trace = trace_of(chains)
    if not len(trace.blocks):
        return
    sizes = [read_capacity(f"{size}tokens", trace) for size in (ram, ssd)]
    found = simulate_tiers(trace, "lru", sizes[0], sizes[1], admit=admit)
    assert (found.ram_tokens >= 0).all() and (found.ssd_tokens >= 0).all() and (found.recomputed >= 0).all()
    assert not found.spurned_tokens.any()
    assert found.cached_tokens <= trace.known_tokens


@settings(max_examples=25, deadline=None)
@given(CHAINS)
def test_tiers_without_limit_restore_all_that_is_known_and_write_each_block_once(
    chains: list[tuple[list[int], int]],
) -> None:
    trace = trace_of(chains)
    if not len(trace.blocks):
        return
    found = simulate_tiers(trace, "lru", read_capacity("10ktokens", trace), read_capacity("10ktokens", trace))
    assert found.cached_tokens == trace.known_tokens and found.of_infinite == 1
    full = trace.sizes[np.unique(trace.blocks[trace.place_tokens == trace.block_tokens])].sum()
    assert full <= found.written_tokens.sum() <= trace.sizes.sum(), "a partial block waits until its memory is needed"


def test_ssd_keeps_what_ram_lost() -> None:
    small = read_capacity("5%", TRACE)
    alone = simulate_tiers(TRACE, "lru", small, None)
    both = simulate_tiers(TRACE, "lru", small, read_capacity("inf", TRACE))
    assert alone.cached_tokens < both.cached_tokens == TRACE.known_tokens
    assert both.ssd_tokens.sum() > 0 and not alone.ssd_tokens.any() and not alone.written_tokens.any()


def test_a_slow_drive_is_spurned_and_never_makes_a_request_later_than_computing_it() -> None:
    sizes = read_capacity("5%", TRACE), read_capacity("inf", TRACE)
    for speed in (read_speed(COST), Speed(1e-4, ssd=1e5, memory=1e6), Speed(1e-2, token2_s=1e-4, ssd=3e4)):
        rule = RestoreRule(speed, 1000)
        auto = simulate_tiers(TRACE, "lru", *sizes, rule=rule).service_s(speed, 1000)
        never = speed.base_s + np.array([speed.prefill(0, int(n)) for n in TRACE.input_tokens])
        assert (auto <= never * (1 + 1e-9)).all()
    slow = simulate_tiers(TRACE, "lru", *sizes, rule=RestoreRule(Speed(1e-4, ssd=1e5, memory=1e9), 1000))
    assert slow.spurned_tokens.sum() > 0 and not slow.ssd_tokens.any()


def test_what_is_computed_again_is_in_ram_for_the_next_turn() -> None:
    chains = [[1, 2, 3], [7, 8, 9], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    trace = block_trace("made", 16, chains)
    rule = RestoreRule(Speed(1e-4, ssd=1e5, memory=1e9), 1000)
    found = simulate_tiers(trace, "lru", read_capacity("5", trace), read_capacity("20", trace), rule=rule)
    assert found.spurned_tokens.tolist() == [0, 0, 16, 0], "of the three blocks one had left RAM"
    assert found.ram_tokens.tolist() == [0, 0, 32, 64] and not found.ssd_tokens.any()


def test_rows_say_waits_bytes_and_years() -> None:
    found = replay_tiers(TRACE, "5%", "50%,0", cost=COST, token_bytes=1000, endurance="1GB", progress=False)
    rows = {(row["ssd"], row["metric"], row.get("tier", "")): row["value"] for row in found.rows}
    one = found.counts[0]
    written = int(one.written_tokens.sum()) * 1000
    assert rows["50%", "bytes_written", ""] == written > 0
    span = float(TRACE.times[-1] - TRACE.times[0])
    assert rows["50%", "ssd_years", ""] == pytest.approx(1e9 / written * span / (365.25 * 86_400))
    assert ("0", "ssd_years", "") not in rows, "a drive that is not there lasts for ever"
    assert rows["50%", "ttft_p95_ms", ""] >= rows["50%", "ttft_p50_ms", ""] > 500
    assert rows["50%", "ttft_p50_ms", ""] >= rows["50%", "ttft_alone_p50_ms", ""]
    assert rows["50%", "cached_tokens", "ram"] + rows["50%", "cached_tokens", "ssd"] == rows["50%", "cached_tokens", ""]
    assert rows["50%", "recomputed_tokens", ""] == rows["50%", "prompt_tokens", ""] - rows["50%", "cached_tokens", ""]
    requests = found.requests(one)
    assert requests["ram_tokens"].sum() == rows["50%", "cached_tokens", "ram"]
    assert np.percentile(requests["ttft_ms"], 95) == pytest.approx(rows["50%", "ttft_p95_ms", ""])
    assert "from ssd" in str(found) and "ssd years" in found._repr_html_()
    assert found.facts["cost"]["token_s"] == 0.01


def test_a_server_that_cannot_keep_up_says_so() -> None:
    busy = replay_tiers(conversations(pause=0.1), "5%", cost=COST, token_bytes=1000, progress=False)
    calm = replay_tiers(TRACE, "5%", cost=COST, token_bytes=1000, progress=False)
    loads = [{row["metric"]: row["value"] for row in found.rows}["load"] for found in (busy, calm)]
    assert loads[0] > 1 > loads[1]


def test_processes_count_as_one_does() -> None:
    one, two = (
        replay_tiers(TRACE, "5%,10%", "20%", "lru,sieve", workers=workers, progress=False, cost=COST, token_bytes=9)
        for workers in (1, 2)
    )
    assert one.rows == two.rows and len(one.counts) == 4


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"ram": "0"}, TraceError, "the size of RAM such as --ram 8GB"),
        ({"ram": "8GB"}, TraceError, "--kv-bytes 131072"),
        ({"ram": "5%", "cost": COST}, TraceError, "waits need the bytes of KV a token: write --kv-bytes"),
        ({"ram": "5%", "restore": "auto"}, TraceError, "write --cost prefill=450"),
        ({"ram": "5%", "restore": "never"}, TraceError, "write always or auto"),
        ({"ram": "5%", "admit": 0}, TraceError, "write 1 or more"),
        ({"ram": "5%", "cost": "fast"}, SpeedError, "write a file of kvlab bench cost --json"),
        ({"ram": "5%", "replace": "mru"}, TraceError, "use one of"),
    ],
)
def test_what_cannot_be_replayed_says_what_to_write(given: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        replay_tiers(TRACE, progress=False, **given)


def test_command_prints_rows_and_refuses_options_of_the_other_kind(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "chat.jsonl"
    rows = [{"block_tokens": 16}, *({"hash_ids": [1, 2, 3 + n % 4], "t": n} for n in range(20))]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["replay", str(file), "--ram", "2", "--ssd", "50%", "--cost", COST, "--kv-bytes", "100"]
    assert main([*line, "--restore", "auto", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["provenance"]["kv_bytes_per_token"] == 100
    assert {"ttft_p95_ms", "bytes_written", "load"} <= {row["metric"] for row in printed["rows"]}
    assert main(line) == 0
    assert "from ssd" in capsys.readouterr().out
    for wrong, says in (
        (["--capacity", "5%", "--ram", "2"], "--ram and --capacity exclude each other"),
        (["--ssd", "5%"], "--ssd is of RAM over SSD: write --ram 8GB too"),
    ):
        assert main(["replay", str(file), *wrong]) == 2
        assert says in capsys.readouterr().err
