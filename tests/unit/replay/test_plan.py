"""The planner: its answer reaches the target and the next smaller size does not."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlab.charts import tier_sizes
from kvlab.cli import main
from kvlab.errors import RunError
from kvlab.replay import BlockTrace, TraceError, block_trace, load_trace, plan, replay_tiers
from kvlab.replay.plan_target import read_target
from kvlab.replay.planning import smallest
from kvlab.replay.round_sizes import RoundSizes
from tests.chart_kit import marks
from tests.replay_kit import SHARED, needs_traces

COST = "prefill=100,ram=10MB,ssd=4MB"


def conversations(count: int = 16, turns: int = 10, seed: int = 0) -> BlockTrace:
    """Conversations whose turns come by chance, with one head of five blocks."""
    draw = np.random.default_rng(seed)
    done, chains = [0] * count, []
    for one in draw.permutation(np.repeat(np.arange(count), turns)):
        done[one] += 1
        chains.append([0, 1, 2, 3, 4, *range(1000 * (one + 1), 1000 * (one + 1) + 3 * done[one])])
    return block_trace("conversations", 16, chains, times=30.0 * np.arange(len(chains)))


TRACE = conversations()


@pytest.mark.parametrize("token_bytes", [0, 1000])
@pytest.mark.parametrize("replace", ["lru", "s3fifo"])
@pytest.mark.parametrize("target", ["80%", "95%"])
def test_a_replay_at_the_answer_reaches_the_target_and_just_below_does_not(
    target: str, replace: str, token_bytes: int
) -> None:
    found = plan(TRACE, target, replace, token_bytes=token_bytes, progress=False)
    share, answer, below = read_target(target).bound, found.answer, found.below
    assert answer.ssd is not None and below is not None and below.ssd is not None
    sizes = RoundSizes(TRACE, token_bytes)
    assert sizes.capacity(sizes.number(answer.ssd.amount) - 1).text == below.ssd.text
    counts = replay_tiers(
        TRACE, answer.ram.text, [answer.ssd.text, below.ssd.text], replace, token_bytes=token_bytes, progress=False
    ).counts
    assert counts[0].of_infinite >= share > counts[1].of_infinite
    assert (counts[0].of_infinite, counts[1].of_infinite) == (answer.value, below.value)
    assert answer.ram.amount >= TRACE.input_tokens.max()


def test_a_wait_is_planned_for_with_more_ram_where_the_drive_is_slow() -> None:
    ends = {}
    for target in ("ttft_p95=2s", "ttft_p95=1200ms"):
        found = plan(TRACE, target, token_bytes=10_000, cost=COST, progress=False)
        ssd = found.answer.ssd.text if found.answer.ssd else "0"
        again = replay_tiers(TRACE, found.answer.ram.text, ssd, cost=COST, token_bytes=10_000, progress=False)
        waits = {row["metric"]: row["value"] for row in again.rows}
        assert waits["ttft_p95_ms"] == found.answer.value <= read_target(target).bound
        assert found.below is None or found.below.value > read_target(target).bound
        ends[target] = found.answer.sizes
    assert ends["ttft_p95=1200ms"][0] > ends["ttft_p95=2s"][0]


def test_frontier_has_less_of_one_where_it_has_more_of_the_other_and_ends_without_ssd() -> None:
    found = plan(TRACE, "90%", progress=False)
    sizes = [one.sizes for one in found.frontier]
    assert sizes == sorted(sizes) and [ssd for _, ssd in sizes] == sorted((ssd for _, ssd in sizes), reverse=True)
    assert len(sizes) > 1 and sizes[-1][1] == 0
    assert all(one.is_reached for one in found.frontier)


def test_a_plan_of_a_policy_without_a_curve_tries_few_sizes() -> None:
    assert len(plan(TRACE, "90%", "s3fifo", progress=False).trials) <= 22, "halving takes 31"


def test_what_cannot_be_reached_says_what_can() -> None:
    with pytest.raises(TraceError, match="with RAM and SSD without limit it has .* ms at the 95th percentile"):
        plan(TRACE, "ttft_p95=1ms", token_bytes=1000, cost=COST, progress=False)


@pytest.mark.parametrize("text", ["95", "0%", "101%", "fast", "p95=2", "ttft_p0=2s", "p95=0s"])
def test_targets_that_cannot_be_read_say_what_to_write(text: str) -> None:
    with pytest.raises(TraceError, match="write 95% of what a cache without limit would hit, or a wait such as"):
        read_target(text)


@pytest.mark.parametrize(
    ("text", "metric", "bound"),
    [("95%", "of_infinite", 0.95), ("ttft_p95=2s", "ttft_p95_ms", 2000.0), ("p50 = 800 ms", "ttft_p50_ms", 800.0)],
)
def test_targets_are_read(text: str, metric: str, bound: float) -> None:
    assert (read_target(text).metric, read_target(text).bound) == (metric, bound)


def test_a_wait_needs_speeds() -> None:
    with pytest.raises(TraceError, match="write --cost prefill=450"):
        plan(TRACE, "ttft_p95=2s", progress=False)


@given(st.integers(0, 300), st.integers(0, 300), st.none() | st.integers(-5, 320))
def test_the_smallest_is_found_from_every_guess(boundary: int, high: int, guess: int | None) -> None:
    boundary = min(boundary, high)
    asked: list[int] = []

    def reaches(number: int) -> bool:
        asked.append(number)
        return number >= boundary

    assert smallest(reaches, 0, high, guess) == boundary
    assert all(0 <= one <= high for one in asked)


@given(st.integers(1, 10**12), st.sampled_from([0, 1, 1000, 147_456]))
def test_sizes_hold_what_is_asked_and_are_at_most_a_hundredth_more(tokens: int, token_bytes: int) -> None:
    sizes = RoundSizes(TRACE, token_bytes)
    tokens = max(tokens, TRACE.block_tokens)
    number = sizes.number(tokens)
    assert sizes.capacity(number).amount >= tokens
    assert sizes.capacity(number + 1).amount <= max(1.02 * sizes.capacity(number).amount, 102)
    if number > sizes.number(TRACE.block_tokens):
        assert sizes.capacity(number - 1).amount < tokens


def test_chart_has_all_trials_near_and_names_the_answer() -> None:
    found = plan(TRACE, "90%", token_bytes=1000, progress=False)
    spec = found.chart().to_dict()
    texts = json.dumps(spec)
    assert f"{found.answer.ram.text} RAM" in texts and "How large a cache: conversations" in texts
    assert {unit["mark"]["type"] for unit in marks(spec)} >= {"point", "line", "text"}
    with pytest.raises(RunError, match="no size reaches the target"):
        tier_sizes(found.frame().filter(found.frame()["chosen"] == ""))


def test_command_prints_the_answer_and_rows(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.jsonl"
    rows: list[dict[str, Any]] = [{"block_tokens": 16}]
    rows += [{"hash_ids": [1, 2, *range(100 * (n % 4), 100 * (n % 4) + 3 + n // 4)], "t": n} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["replay", str(file), "--plan", "--kv-bytes", "100"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("chat, 95%: ") and " of RAM" in printed
    assert main(["replay", str(file), "--plan", "80%", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row for row in document["rows"] if row["chosen"] == "answer"]
    assert {row["size_unit"] for row in document["rows"]} == {"tokens"}
    for wrong, says in (
        (["--plan", "--ram", "5"], "--plan and --ram exclude each other"),
        (["--plan", "--capacity", "5"], "--plan and --capacity exclude each other"),
        (["--plan", "much"], "cannot plan for"),
    ):
        assert main(["replay", str(file), *wrong]) == 2
        assert says in capsys.readouterr().err


@needs_traces
def test_the_first_requests_of_mooncake_need_what_was_found() -> None:
    whole = load_trace(SHARED / "mooncake" / "conversation_trace.jsonl.xz")
    trace = block_trace(
        "mooncake",
        whole.block_tokens,
        [whole.chain(request) for request in range(2000)],
        times=whole.times[:2000],
        input_tokens=whole.input_tokens[:2000],
    )
    found = plan(trace, "95%", token_bytes=147_456, progress=False)
    assert found.answer.ssd is not None and found.below is not None and found.below.ssd is not None
    sizes = [found.answer.ssd.text, found.below.ssd.text]
    counts = replay_tiers(trace, found.answer.ram.text, sizes, token_bytes=147_456, progress=False).counts
    assert counts[0].of_infinite >= 0.95 > counts[1].of_infinite
